"""The features of a U-Net variant, one file each; `feature.Feature` is their common base.

cache            reuse of deep features at some steps
cache_schedule   the steps that are computed in full
skip             calls left out, their prediction continued
gate             cross-attention frozen after some steps
tokens           fewer tokens, and tiles, in self-attention
highres          large pictures
mix              how the two halves of guidance are mixed: APG, CFG-Zero*, dynamic thresholding, rescaling
perturbed        perturbed-attention, smoothed-energy and skip-layer guidance
sag              self-attention guidance
perp_neg         what is orthogonal to the prompt of a negative prompt
nag              a negative prompt within cross-attention
freeu            FreeU
perturbations    how a network is made worse for it
options          what is declared of an option
"""
