"""Few-step LoRAs: consistency distillation of a model into adapters (LCM-LoRA, Luo et al. 2023, arXiv 2311.05556).

config, settings  the settings of `train_few_step`: those of LoRA training, and what the teacher does
teacher           the teacher's steps along its ODE, from a sampler's table, and the consistency function's scalings
loss              the distance of two jumps to x0, from a noise level and from where the teacher's step from it ends
task              the task: LoRA training with this loss
"""
