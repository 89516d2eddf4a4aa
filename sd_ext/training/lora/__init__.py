"""Training a LoRA: what `train_lora` brings to the loop.

task             the U-Net and text encoders with adapters, their batches and previews
adapters         which layers get an adapter, and of which kind
start            initialisations that take their part out of the base (PiSSA, OLoRA)
new_words        new words of the text encoders (textual inversion)
class_pictures   prior preservation: pictures of the class, drawn by the base
plan             what a run would do, for `--dry-run`
estimate         how much memory it takes, found without loading a weight
result           the folder that a finished run leaves
"""
