"""`sd-ext train look`: what a run would train on, picture by picture, as one HTML page or as JSON. Nothing is trained.

settings   what is shown, and where it goes
look       the command: gathers, looks and writes
seen       what is known of each picture and each of its texts
tokens     a text as the tokenizer cuts it up, and where it ends
twins      near-duplicates
shots      small pictures for the page: as the model sees them, whole, and their masks
page       the page
cards      the part of the page that is about one picture
"""
