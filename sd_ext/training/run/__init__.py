"""A training run: from settings to a finished folder; it can be interrupted and resumed at any time.

fit          a whole run: opens the folder, resumes, trains, logs, saves
exports      its result, and results from before the end
signals      Ctrl-C and SIGTERM
loop         the training loop: passes, gradients, optimizer, averaged weights
task         the interface between `fit` and one kind of training
config       the settings that all scripts share
settings     their groups: folder, loop, machine
checkpoint   writing, checking and loading checkpoints
early, best  early stopping by the validation loss; the best step is kept and becomes the result
saved        a run written into a checkpoint and put back
folder       the folder of a run, and the record of its settings
history      the log of losses and other metrics
trackers     TensorBoard and W&B
progress     the progress bar
machine      the device, and checks that it supports the settings
memory       free memory, and the memory that operations take
result       the checksums of the result
"""
