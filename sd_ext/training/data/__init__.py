"""Captioned pictures: where they come from, their sizes, their captions, and which of them a step sees.

settings   their settings
sources    what a folder, shards or a data set of the Hub hold: items
folders, shards, tables   the kinds of source
items      an item: a picture that has not been read yet, with what is said about it
buckets    the sizes that pictures are brought to
look       the first look at a picture: whether it can be used, and at which sizes
images     from a file to pixels
pictures   the samples of all pictures, read when wanted
captions   captions with tags shuffled or left out
phrases    other ways to say a caption
texts      all texts that a run may show its model
order      which samples a step sees, and which process takes which
draws      random numbers that depend on where in a run they are drawn
ahead      reading in threads while the last is trained on
"""
