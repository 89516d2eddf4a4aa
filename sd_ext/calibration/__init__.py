"""Fit a sampler to a model: few calls, the teacher's picture, found with forward passes only.

run         the whole: pipeline and prompts in, `CalibratedScheduler` out; `settings` what is asked, `plan` the cost
problem     what a sampler is fitted on; `pipeline` a pipeline as one, with the conditions it gives its U-Net
student     the sampler that is fitted: its numbers, what a call does with them, and how it is run
teacher     a good sampler with many calls; `tables` known samplers, to be taught by and to be beaten
starts      grids to begin with; `greedy` weights call by call; `refine` all numbers by the end error
fit         one fit, chosen and judged; `store` what is finished, to go on from; `provenance` of what it was made
prompts     for those who have none; `report` a page of what came out
"""

from __future__ import annotations

from .refine import Effort
from .run import Listener, calibrate
from .settings import Settings

__all__ = ["Effort", "Listener", "Settings", "calibrate"]
