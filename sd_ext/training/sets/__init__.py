"""Makes sets of captioned pictures from fonts, and the model card of a model trained on one.

glyphs          colour pictures from the font Noto Color Emoji
line_drawings   line drawings from the font Symbola
fonts           finds a font on this machine
folder          writes a picture set as an imagefolder
card            the model card of a pipeline trained from scratch
"""
