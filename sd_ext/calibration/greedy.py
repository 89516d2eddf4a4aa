"""Greedy least squares: weights call by call, on the states that the student itself comes to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..schedulers.schedule import Array
from .student import Course, State, Student
from .teacher import Teacher

RIDGE = 1e-7
"""Share of each column's square that is added to it: holds back weights that the data do not determine."""


def greedy(course: Course, teacher: Teacher, student: Student) -> Student:
    """Fit the weights of each call so that it leads to the teacher's state at the next level.

    The student's errors up to a call are in what it starts from, so later calls correct earlier ones. Costs one run.

    Args:
        course: the pairs for fitting.
        teacher: what they should come to.
        student: with levels, told levels and fields that stay; its weights are not used.
    """
    state = None
    for i, lam in enumerate(student.levels.lam[1:]):
        state = course.run(student, i, state, stop=i, goes_on=i > 0).states[-1]
        rest = teacher.target(course.pairs, float(lam)) - student.step(i, state.x, state.seen, ())
        student = student.with_weights(i, least_squares(student.columns(i, state.seen), rest))
        state = State(student.step(i, state.x, state.seen), state.seen, state.seen)
    return student


def least_squares(columns: Sequence[Tensor], rest: Tensor) -> Array:
    """Weights w with sum w_j columns_j nearest to `rest`, in float64."""
    if not columns:
        return np.zeros(0)
    many = torch.stack([each.cpu().double().flatten() for each in columns])
    gram = (many @ many.T).numpy()
    right = (many @ rest.cpu().double().flatten()).numpy()
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    scaled = gram / np.outer(scale, scale) + RIDGE * np.eye(len(scale))
    return np.linalg.solve(scaled, right / scale) / scale
