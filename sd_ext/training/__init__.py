"""Training: LoRAs, full fine-tuning, and Stable Diffusion from scratch.

The files here are launchable scripts (`accelerate launch training/train_lora.py ...`); the folders are what they are
made of, from the bottom:

settings    what can be set, as flags and in TOML files    quick      layers that are faster on a CPU
optimizer   optimizers, rates, their state                 data       captioned pictures, and which of them a step sees
model       the networks a run starts from and leaves      sets       sets of pictures that can be made here
encoding    what encoders make of pictures, kept in caches objective  what is minimised
run         a run from settings to result, resumable       diffusion  what LoRAs and whole U-Nets share
lora        training a LoRA
"""
