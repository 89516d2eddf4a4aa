"""Samplers as tables of coefficients, and the Diffusers schedulers that run them.

schedule     the trained forward process          grids      where the steps fall
table        a sampler as numbers, self-checked   run        executes a table, the only code that touches tensors
base         the Diffusers scheduler interface    placement  the levels of a run
plan         what is remembered from set_timesteps to the last step
transfer     a step with one prediction           kernel     a step with a polynomial through several
multistage   steps of several network calls       corrector  predictor-correctors
samplers/    the samplers, one file per family    registry   samplers by name
noise        noise from a Brownian path           export     writes a sampler as numbers; exported runs them
"""

from . import samplers
from .base import TableScheduler
from .grids import list_grids
from .info import SamplerInfo
from .plan import StepOutput
from .registry import list_samplers, make_scheduler
from .samplers import *  # noqa: F403
from .schedule import Levels, NoiseSchedule
from .table import Table

__all__ = [
    "Levels",
    "NoiseSchedule",
    "SamplerInfo",
    "StepOutput",
    "Table",
    "TableScheduler",
    "list_grids",
    "list_samplers",
    "make_scheduler",
]
__all__ += samplers.__all__
