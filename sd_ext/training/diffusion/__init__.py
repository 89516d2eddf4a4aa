"""What training a LoRA and training a whole U-Net share.

config     the settings they have in common
task       what they bring to `fit`: samples, what is drawn for each, validation, previews
samples    which pictures are trained on, and which are held out
settings   settings of the pictures that are drawn meanwhile
previews   pictures by the model as it is
"""
