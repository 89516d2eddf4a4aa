"""The original layout of Stable Diffusion: one `.safetensors` file, with the names of the first published code.

Diffusers keeps the same weights in a folder, under other names. What differs, and where each file says it:

families       what shapes do not tell: the numbers of each family, in families.json
shapes         what they do tell: the configs of the networks, read from the tensors' names and shapes
modules        every module with weights of a family, and its names
unet_names     the U-Net's modules: input_blocks.1.1 is down_blocks.0.attentions.0
vae_names      the autoencoder's: down.0.block.1 is down_blocks.0.resnets.1
text_names     the text encoders': of CLIP-L, whose names are the same, and of OpenCLIP
renames        use such a list of modules in both directions
places         where each tensor of a part is in the file
prediction     what a model predicts, and how that is known
tokenizer      CLIP's tokenizer, from its vocabulary in clip/
told           what a `.safetensors` file is, whatever it is

Sources: github.com/CompVis/stable-diffusion (ldm), github.com/Stability-AI/generative-models (sgm), OpenCLIP. Nothing
here imports torch, except to look at a network's prediction.
"""
