"""What a diffusion model is asked to predict, at which noise levels, from what noise, and how its errors count.

settings    their settings
levels      the noise levels of a run: its schedule, and what each level asks and counts
target      what the network predicts
timesteps   which levels a step trains
noise       noise other than white
error       the error of a prediction
weights     how much each level counts
loss        the module that a run minimises
"""
