"""The only files that use private parts of other libraries; one file or folder for each library.

A private part is one that no documentation promises: a name with an underscore, an attribute that only the source code
shows, a class recognised by its name. Any release may change it. Therefore each is used through a small function in
this folder, called a seam, which records where the part was seen, what stops working without it, and what is done
instead if possible. A missing part never makes an import fail: only functions that need it raise `SeamError`.

seam           what a seam is; the list of all seams
torch          attributes of modules, storages, fake tensors
diffusers      what saved pipelines record; a U-Net's blocks and attention layers; the pipeline that calls it
transformers   where a text encoder's layers are
peft           adapters in memory
accelerate     wrappers and hooks around models
xformers       which operators have a gradient
python         the variables of a calling function
later, less    modules that are loaded when they are used

`pytest tests/seams` reports within seconds, by name, every seam whose part is missing; tests/test_architecture.py
checks that the rest of `sd_ext` uses public names only.
"""
