"""Optimizers: choosing them by name, building them, their state in checkpoints, learning-rate schedules.

settings    the settings of the optimizer
names       the table of named optimizers; imports no torch
make        builds an optimizer from a name, options and groups of parameters
averaged    schedule-free optimizers, whose result is an average of the trained weights
state       an optimizer's state as named tensors and JSON, and back
schedules   learning-rate schedules, and their settings
"""
