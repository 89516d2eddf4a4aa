"""The models that training starts from and leaves behind.

files           a base model's parts, configs and digests, on disk
unet            a U-Net made ready for training
text_encoder    a text encoder saved so that every version of Transformers reads it
text_encoders   one or two text encoders, and what the U-Net takes from them
tokenizer       a tokenizer trained on captions
pipeline        the parts put together as a Diffusers pipeline
"""
