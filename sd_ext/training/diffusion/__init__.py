"""The code that training a LoRA and training a whole U-Net share.

config     the settings they have in common
task       their common `Task`: samples, random draws, batches, validation, previews
drawn      the random draws of a pass
base       what the base model brings: its noise schedule
samples    reads the pictures to train on and the held-out pictures
settings   the settings of previews
prompts    reads their prompts, each with what is its own
previews   draws a picture with the model in training
"""
