"""What a U-Net variant can do, one file each: `feature.Feature` is what they have in common.

cache            deep features reused for some steps
cache_schedule   which steps are computed in full
gate             cross-attention frozen after some steps
tokens           fewer tokens, and tiles, in self-attention
highres          large pictures
perturbed        perturbed-attention and smoothed-energy guidance
freeu            FreeU
"""
