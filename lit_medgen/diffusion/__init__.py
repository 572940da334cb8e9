"""The mathematics of diffusion: schedules, processes, denoisers, samplers. No networks, files or Lightning."""

from lit_medgen.diffusion.denoisers import Denoiser, Denoises, LossWeight, MinSNR, UniformWeight
from lit_medgen.diffusion.discrete import AbsorbingProcess, DiscreteProcess, HeatProcess
from lit_medgen.diffusion.gaussian import GaussianProcess
from lit_medgen.diffusion.guidance import ClassifierFree, Clipped, Guidance, guided
from lit_medgen.diffusion.heat import BlurSchedule, dissipate
from lit_medgen.diffusion.parametrisations import Eps, Parametrisation, ParametrisationName, V, X
from lit_medgen.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, Heun, Sampler, times
from lit_medgen.diffusion.schedules import Cosine, Derivatives, LinearBeta, ScaledLinearBeta, Schedule

__all__ = [
    "DDIM",
    "AbsorbingProcess",
    "Ancestral",
    "BlurSchedule",
    "ClassifierFree",
    "Clipped",
    "Cosine",
    "DPMSolverPP2M",
    "Denoiser",
    "Denoises",
    "Derivatives",
    "DiscreteProcess",
    "Eps",
    "GaussianProcess",
    "Guidance",
    "HeatProcess",
    "Heun",
    "LinearBeta",
    "LossWeight",
    "MinSNR",
    "Parametrisation",
    "ParametrisationName",
    "Sampler",
    "ScaledLinearBeta",
    "Schedule",
    "UniformWeight",
    "V",
    "X",
    "dissipate",
    "guided",
    "times",
]
