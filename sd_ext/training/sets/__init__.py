"""Makes sets of captioned pictures, and the model card of a model trained on one.

drawings   scenes, and small sets of one style, from sets of drawings
glyphs     colour pictures from the font Noto Color Emoji
fonts      finds a font on this machine
folder     writes a picture set as an imagefolder
card       the model card of a pipeline trained from scratch
"""
