"""`sd-ext train caption`: captions by machine, with any model of transformers that the user names; none comes with us.

models   image-to-text models and taggers: pictures to texts
write    the command: a caption beside each picture that has none
"""
