"""Samplers that were fitted to a model, and the scheduler that runs them.

fits         what was found, as data              between    tables between two strengths of guidance
calibration  all fits of a model, and what they were made of
variants     a table from the middle, with noise  known      where a known sampler is better
pipelines    what an attached pipeline tells      scheduler  the scheduler
card         the README of its folder
"""

from .calibration import Calibration, Provenance
from .fits import Fit
from .pipelines import sample_of_weights
from .scheduler import CalibratedScheduler

__all__ = ["CalibratedScheduler", "Calibration", "Fit", "Provenance", "sample_of_weights"]
