"""Samplers as tables of coefficients, and the Diffusers schedulers that run them.

schedule   the trained forward process          grids      where the steps fall
table      a sampler as numbers, self-checked   run        executes a table, the only code that touches tensors
base       the Diffusers scheduler interface    classes    one scheduler class per family
placement  the levels of a run                  plan       what is remembered from set_timesteps to the last step
registry   samplers by name
first_order, ddpm, pndm, multistage, dpm_solver: functions from noise levels to tables, one file per family
"""

from .base import TableScheduler
from .classes import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from .grids import list_grids
from .plan import StepOutput
from .registry import list_samplers, make_scheduler
from .schedule import Levels, NoiseSchedule
from .table import Table

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "Levels",
    "NoiseSchedule",
    "PNDMScheduler",
    "StepOutput",
    "Table",
    "TableScheduler",
    "list_grids",
    "list_samplers",
    "make_scheduler",
]
