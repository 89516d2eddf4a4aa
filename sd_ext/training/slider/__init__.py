"""Slider LoRAs, which more of turns a picture one way and less of, or a negative strength, the other way.

(Gandikota et al. 2023, "Concept Sliders", arXiv 2311.12092.)

config, settings  the settings of `train_slider`: those of LoRA training, and the two ends
strengths         the strength of a LoRA, by sample
loss              from two texts, or from pairs of pictures
pairs             the pictures that go with those of the data
task              the task: LoRA training with either loss
"""
