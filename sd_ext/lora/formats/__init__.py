"""LoRA file formats: every one that is read, and the two that are written.

files       a file's tensors and header, checked     reading     any file as a `Lora`
keys        tensors by key to adapters by module     names       which module a name in a file means
diffusers   Diffusers' format                        kohya       AUTOMATIC1111's and ComfyUI's format
foreign     what is no LoRA for Stable Diffusion     bases       the base model, from modules, shapes and header
"""
