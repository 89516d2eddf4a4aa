"""Loading, preparing and saving the models that are trained.

settings        the settings of the base model and the U-Net
trainable       which models on disk can be trained further
unet            prepares a U-Net: gradient checkpointing, attention, compilation
text_encoder    saves a text encoder so that every version of Transformers reads it
text_encoders   the text encoders of a pipeline, and their outputs as the U-Net takes them
tokenizer       trains a tokenizer on captions
pipeline        builds and saves Diffusers pipelines
"""
