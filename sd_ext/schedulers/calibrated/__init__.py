"""Samplers that were fitted to a model.

fits         what was found, as data              between    tables between two strengths of guidance
calibration  all fits of a model, and what they were made of
"""

from .calibration import Calibration, Provenance
from .fits import Fit

__all__ = ["Calibration", "Fit", "Provenance"]
