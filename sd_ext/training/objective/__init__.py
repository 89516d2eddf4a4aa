"""The training objective of diffusion models: prediction target, timesteps, noise, error and loss weighting.

settings    the settings of all of them
levels      the noise schedule of a run, with the target, weight and error scale of each timestep
target      the prediction target: epsilon, v or x0
timesteps   draws the timesteps of a step
noise       offset noise, pyramid noise, input perturbation
error       l2, l1 and Huber errors of a prediction
weights     loss weighting by signal-to-noise ratio
loss        the module that is minimised
"""
