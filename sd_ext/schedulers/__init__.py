"""Samplers as tables of coefficients, and the Diffusers schedulers that run them.

What a sampler is:
processes/   what models were trained on          schedule   the levels of such a process
grids        where the steps fall                 asking     what a flow model's run is asked for
table        a sampler as numbers, self-checked   placement  the levels of a run
transfer     a step with one prediction           kernel     a step with a polynomial through several
multistage   steps of several network calls       corrector  predictor-correctors
samplers/    the samplers, one file per family    registry   every sampler
programs/    names and habits of other programs   find, make a sampler by name
calibrated/  tables fitted to a model
base, fields the class that samplers inherit from, and its options

How one is run; an exported sampler takes these along:
prediction   what the network predicts            run        executes a table, the only code that combines tensors
plan         what is remembered between steps     stepping   the Diffusers scheduler interface of a run
forward      noise on pictures, for training      exported   a scheduler of stored numbers

noise        noise from a Brownian path           export     writes a sampler as numbers; assemble, the file beside them
interchange  a run as JSON, for other languages
"""

from . import samplers
from .base import TableScheduler
from .calibrated import CalibratedScheduler, Calibration, Fit
from .grids import list_grids
from .info import SamplerInfo
from .make import make_scheduler
from .plan import StepOutput
from .registry import list_samplers
from .samplers import *  # noqa: F403
from .schedule import Levels, NoiseSchedule
from .table import Table

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    *samplers.__all__,
    "CalibratedScheduler",
    "Calibration",
    "Fit",
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
