"""Sets of captioned pictures that can be made here, and the card of a model trained on one.

glyphs          pictures of Noto Color Emoji
line_drawings   line drawings of Symbola
fonts           where a font is on this machine
folder          how a set is written
card            the model card of a pipeline trained from scratch
"""
