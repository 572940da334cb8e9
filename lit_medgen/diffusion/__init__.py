"""The mathematics of diffusion: schedules, processes, denoisers, samplers. No networks, files or Lightning."""

from lit_medgen.diffusion.denoisers import Denoiser, MinSNR, UniformWeight, evaluation_times, stratified_times
from lit_medgen.diffusion.discrete import AbsorbingProcess, DiscreteProcess, HeatProcess
from lit_medgen.diffusion.gaussian import GaussianProcess
from lit_medgen.diffusion.heat import BlurSchedule, dissipate
from lit_medgen.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, Heun, Sampler, times
from lit_medgen.diffusion.schedules import Cosine, LinearBeta, ScaledLinearBeta, Schedule

__all__ = [
    "DDIM",
    "AbsorbingProcess",
    "Ancestral",
    "BlurSchedule",
    "Cosine",
    "DPMSolverPP2M",
    "Denoiser",
    "DiscreteProcess",
    "GaussianProcess",
    "HeatProcess",
    "Heun",
    "LinearBeta",
    "MinSNR",
    "Sampler",
    "ScaledLinearBeta",
    "Schedule",
    "UniformWeight",
    "dissipate",
    "evaluation_times",
    "stratified_times",
    "times",
]
