"""Pictures that pictures are made from, and the networks that look at them.

    files      which files a recipe names, and whether they are what they were     fit    to the size that is drawn
    possible   what a model cannot do, told before it is loaded                    parts  ControlNets and refiners
    look       all of these, before a model is loaded
    passes     the pipeline calls that make a picture, one after the other

torch is imported by `fit`, `parts` and `passes` only, and only in functions.
"""
