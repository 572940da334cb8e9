"""The mathematics of diffusion: schedules, processes, denoisers, samplers. No networks, files or Lightning."""

from lit_medgen.diffusion.bound import NoiseAt, bits_per_dimension, diffusion_term, latent_at_start, prior_term
from lit_medgen.diffusion.completion import Completing, RePaint, filled_in, wholly_observed
from lit_medgen.diffusion.coupling import OptimalTransport
from lit_medgen.diffusion.denoisers import Denoiser, Denoises, LossWeight, MinSNR, UniformWeight
from lit_medgen.diffusion.discrete import AbsorbingProcess, DiscreteProcess, HeatProcess
from lit_medgen.diffusion.flow_samplers import FlowEuler, FlowHeun
from lit_medgen.diffusion.gaussian import GaussianProcess
from lit_medgen.diffusion.guidance import ClassifierFree, Clipped, Guidance, guided
from lit_medgen.diffusion.heat import BlurSchedule, dissipate
from lit_medgen.diffusion.learned_schedules import GammaSchedule, LinearGamma, MonotoneGamma
from lit_medgen.diffusion.likelihood_guidance import LikelihoodGuidance, LogLikelihood, Term
from lit_medgen.diffusion.likelihoods import Bernoulli, DiscretisedLogistic, Gaussian, Likelihood
from lit_medgen.diffusion.noise_levels import LogitNormal, TrainingTimes, UniformTimes
from lit_medgen.diffusion.parametrisations import Eps, Parametrisation, ParametrisationName, V, Velocity, X
from lit_medgen.diffusion.rectified_flow import RectifiedFlow, resolution_shift
from lit_medgen.diffusion.resynthesis import Resynthesis
from lit_medgen.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, Heun, NoiseLike, Sampler, times
from lit_medgen.diffusion.schedules import Cosine, Derivatives, LinearBeta, ScaledLinearBeta, Schedule
from lit_medgen.diffusion.tiling import Tiled
from lit_medgen.diffusion.zero_terminal_snr import ZeroTerminalSNR

__all__ = [
    "DDIM",
    "AbsorbingProcess",
    "Ancestral",
    "Bernoulli",
    "BlurSchedule",
    "ClassifierFree",
    "Clipped",
    "Completing",
    "Cosine",
    "DPMSolverPP2M",
    "Denoiser",
    "Denoises",
    "Derivatives",
    "DiscreteProcess",
    "DiscretisedLogistic",
    "Eps",
    "FlowEuler",
    "FlowHeun",
    "GammaSchedule",
    "Gaussian",
    "GaussianProcess",
    "Guidance",
    "HeatProcess",
    "Heun",
    "Likelihood",
    "LikelihoodGuidance",
    "LinearBeta",
    "LinearGamma",
    "LogLikelihood",
    "LogitNormal",
    "LossWeight",
    "MinSNR",
    "MonotoneGamma",
    "NoiseAt",
    "NoiseLike",
    "OptimalTransport",
    "Parametrisation",
    "ParametrisationName",
    "RePaint",
    "RectifiedFlow",
    "Resynthesis",
    "Sampler",
    "ScaledLinearBeta",
    "Schedule",
    "Term",
    "Tiled",
    "TrainingTimes",
    "UniformTimes",
    "UniformWeight",
    "V",
    "Velocity",
    "X",
    "ZeroTerminalSNR",
    "bits_per_dimension",
    "diffusion_term",
    "dissipate",
    "filled_in",
    "guided",
    "latent_at_start",
    "prior_term",
    "resolution_shift",
    "times",
    "wholly_observed",
]
