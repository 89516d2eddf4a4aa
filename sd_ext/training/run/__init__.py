"""A training run: from settings to a finished folder, resumable at any moment.

fit          the run from its first step to its result
loop         the steps: passes, gradients, optimizer, averages
task         what a script brings to `fit`
checkpoint   a moment of a run on disk
folder       the folder of a run, and what must not change in it
history      the log of measures
progress     what is shown meanwhile
previews     pictures by the model as it is
machine      which device, and whether it can do what is asked
memory       what is free, and what operations take
"""
