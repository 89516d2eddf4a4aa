"""Optimizers: how they are named and made, their state in a checkpoint, their learning rates over time.

names       the optimizers that have a name, and what is known of them; imports no torch
make        an optimizer from a name, its options, and groups of parameters
averaged    schedule-free optimizers, whose result is an average of the weights that are trained
state       an optimizer's state as named tensors, and back
schedules   learning rates over the steps of a run
"""
