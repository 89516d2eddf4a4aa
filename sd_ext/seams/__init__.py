"""The only files that name private parts of other libraries, one file or folder for each library.

A private part is one that no documentation promises: a name with an underscore, an attribute that only the source
shows, a class told by its name. Any release may move it. So each lies behind a small function here, a seam, which says
where the part was seen, what stops working if it goes, and what is done instead where something can be. A missing part
never fails an import: what needs it raises `SeamError`, and everything else goes on.

seam           what a seam is; a list of all
torch          modules' insides, storages, fake tensors
diffusers      what pipelines record; blocks, attention layers and callers of a U-Net
transformers   where a text encoder's layers are
peft           adapters in memory
accelerate     wrappers and hooks around models
xformers       which operators have a gradient
python         the variables of a caller

`pytest tests/seams` says in seconds, by name, which seam has come open; tests/test_architecture.py holds everything
else in `sd_ext` to public names.
"""
