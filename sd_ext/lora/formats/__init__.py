"""LoRA files: every format that is read, and the two that are written.

files       a file's tensors and header, checked     reading     any file as a `Lora`
keys        which format a file is in                names       names of modules from format to format
diffusers   Diffusers' format                        kohya       AUTOMATIC1111's and ComfyUI's
sdxl        names of SDXL's blocks                   bases       the base model that names and shapes tell of
"""
