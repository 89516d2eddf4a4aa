"""LoRA file formats: every one that is read, and the two that are written.

files       a file's tensors and header, checked     reading     any file as a `Lora`
keys        tensors by key to adapters by module     names       names of modules in each format
diffusers   Diffusers' format                        kohya       AUTOMATIC1111's and ComfyUI's format
sdxl        original names of SDXL's blocks          bases       the base model, guessed from names and shapes
"""
