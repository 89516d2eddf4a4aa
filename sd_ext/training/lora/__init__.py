"""Training a LoRA: the task that `train_lora` passes to `fit`, and its parts.

config, settings  all settings of `train_lora`, and the groups that only LoRA training has
task              the task: U-Net and text encoders with adapters, their batches, previews and result
network           builds these models, with weights or, for an estimate, without
adapters          chooses the layers that get an adapter, and configures peft
start             initialisations that change the base's weights (PiSSA, OLoRA)
new_words         new words of the text encoders (textual inversion)
class_pictures    class pictures for prior preservation, drawn by the base model
plan              the summary of a run for `--dry-run`
estimate          the memory that a run needs, computed without loading weights
result            writes the folder of a finished run
"""
