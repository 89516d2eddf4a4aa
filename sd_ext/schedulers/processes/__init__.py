"""The processes that models were trained on: x_t = alpha x0 + sigma noise, one file for each kind.

reading     what a config says of its process, by its keys and its `_class_name`, and which classes are refused
betas       Stable Diffusion and most others: betas at whole timesteps
continuous  the same, told a quarter of log sigma (Stable Video Diffusion)
flow        rectified flow, alpha = 1 - sigma (SD3, Flux, and most models since)
edm         sigma in a range, with preconditioning (EDM, Stable Audio, consistency models)
angle       an angle from 0 to 1 (Dance Diffusion)

A process is a `NoiseSchedule`: alpha, sigma and lambda everywhere, what the network is told at a level, what it
predicts, and where a run's steps fall when no grid is named. Latents are in the scale in which the network reads them:
what others call c_in is part of alpha and sigma. Samplers know nothing else of a model, so that every one runs on every
process.
"""
