"""The samplers, one file per family: a function from noise levels to a table, the scheduler classes under Diffusers'
names where the sampler is the same, and what is known about each.

auto         the recommended sampler
first_order  DDIM, Euler, Euler a               ddpm        DDPM with its variances
heun         Heun, Heun++, DPM2, DPM2 a         adams       PLMS, PNDM, iPNDM, gradient estimation
dpm_solver   DPM-Solver(++) multistep and SDE   singlestep  DPM-Solver(++) singlestep, DPM fast
exponential_rk  DPM++ 2S a and SDE, SEEDS, RES  res_multistep  RES multistep
deis         LMS, DEIS
unipc        UniPC                              sa_solver   SA-Solver and its PECE form
er_sde       ER-SDE                             restart     Restart
consistency  LCM, TCD                           flow        Euler and Heun for flow matching
churn        what Euler and Heun with churn and Restart share
"""

from . import (
    adams,
    auto,
    consistency,
    ddpm,
    deis,
    dpm_solver,
    er_sde,
    exponential_rk,
    first_order,
    flow,
    heun,
    res_multistep,
    restart,
    sa_solver,
    singlestep,
    unipc,
)
from .adams import GradientEstimationScheduler, IPNDMScheduler, PNDMScheduler
from .auto import AutoScheduler
from .consistency import LCMScheduler, TCDScheduler
from .ddpm import DDPMScheduler
from .deis import DEISMultistepScheduler, LMSDiscreteScheduler
from .dpm_solver import DPMSolverMultistepScheduler
from .er_sde import ERSDEScheduler
from .exponential_rk import (
    DPMSolver2SAncestralScheduler,
    DPMSolverSDEScheduler,
    RESSinglestepScheduler,
    SEEDSScheduler,
)
from .first_order import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from .flow import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from .heun import (
    HeunDiscreteScheduler,
    HeunPPDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from .res_multistep import RESMultistepScheduler
from .restart import RestartScheduler
from .sa_solver import SASolverScheduler
from .singlestep import DPMSolverSinglestepScheduler
from .unipc import UniPCMultistepScheduler

FAMILIES = (
    auto,
    ddpm,
    first_order,
    heun,
    adams,
    deis,
    dpm_solver,
    singlestep,
    exponential_rk,
    res_multistep,
    unipc,
    sa_solver,
    er_sde,
    restart,
    consistency,
    flow,
)
"""In the order in which `list_samplers` lists them."""

__all__ = [
    "AutoScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolver2SAncestralScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "ERSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "GradientEstimationScheduler",
    "HeunDiscreteScheduler",
    "HeunPPDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "RESMultistepScheduler",
    "RESSinglestepScheduler",
    "RestartScheduler",
    "SASolverScheduler",
    "SEEDSScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
