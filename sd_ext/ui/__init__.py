"""`sd-ext ui`: a page in the browser, on the functions that `sd-ext generate` and `sd-ext compare` use.

offer      models and LoRAs by the names that the page shows; nothing else can be opened
settings   what the fields of the page say, as a recipe; and back, from a picture
limits     how much a visitor may ask for
studio     the model that is kept loaded, one drawing at a time
stream     work in a thread, as an iterator of what there is to show; stopping it
work       one picture, two side by side, a plot: from settings to files and words. Knows nothing of Gradio
code       a recipe as a command and as Python
words      the words of a model as buttons
page       the layout, `form` its fields, `handlers` what its buttons do, `serve` the server
space      a folder that is a Hugging Face Space

Only `page`, `form`, `handlers` and `serve` import Gradio, inside functions.
"""

from __future__ import annotations

from .serve import Served, serve

__all__ = ["Served", "serve"]
