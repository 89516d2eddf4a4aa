"""Captioned pictures: where they come from, their sizes, their captions, and which of them a step sees.

settings   the settings of pictures and captions
sources    lists the items of a folder, of shards or of a Hub data set
several    several data sets in one run, each with settings of its own
kohya      kohya's files that list several data sets
folders, shards, tables   readers for each of these kinds of source
walk       every file of a folder; captions and masks beside pictures
unused     the files that are not used, and why
shipped    sets that come with this package
items      an item: a picture's name, caption and mask, with a reader for its bytes
buckets    aspect-ratio buckets: the sizes that pictures are resized and cropped to
look       checks each picture once: whether it can be used, and at which sizes
images     decodes, resizes and crops pictures
colours    colour profiles and more than 8 bits
report     what a run says about its data at the start
pictures   the samples of a run, whose pixels are read on demand
captions   caption variants with tags shuffled or left out
phrases    rephrased captions ("apple" -> "a picture of an apple")
texts      all texts that the samples of a run may be paired with
order      the samples of each step, and their distribution over processes
draws      random generators seeded by the place in the run
ahead      reads the next pictures in threads while the current ones are trained on
"""
