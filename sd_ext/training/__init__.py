"""Training: LoRAs, full fine-tuning, and Stable Diffusion from scratch.

The files in this folder are scripts to launch (`accelerate launch training/train_lora.py ...`). Their code lies in the
subfolders; a folder further down this list may import those above it:

settings    settings as command-line flags and TOML files
optimizer   optimizers, learning-rate schedules, optimizer state in checkpoints
quick       replacement layers that train faster on a CPU
data        reading captioned pictures, and choosing the samples of each step
model       loading, preparing and saving the networks
encoding    latents and text states, encoded once and cached on disk
objective   loss, prediction target, noise and timesteps
run         one training run from settings to result, with checkpoints and resuming
diffusion   the code that LoRA training and U-Net training share
lora        training a LoRA
few_step    training a LoRA for few network calls
slider      training a LoRA whose strength goes both ways
sets        making picture sets to train on, from fonts and icons
"""
