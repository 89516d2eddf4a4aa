"""Models on disk: the one place that knows what a folder, a Hub id or "embedded" contains, and how to read it.

    model = find_model("path/to/pipeline")      # or "model.safetensors", "owner/name" on the Hub, "embedded"
    model.check()                               # all parts are there, as safetensors
    model.family, model.noise()                 # "sd15", "sd21" or "sdxl"; noise schedule and prediction type
    unet = model.load("unet", torch.float16)    # one part; `load_pipeline` loads all

find       what a user's name for a model refers to     weights    weight files: variants, pieces, no pickles
model      `Model`, what every model can do             pipeline   load a whole Diffusers pipeline
folder     a pipeline folder                            mixed      parts of several models in one
hub        a model on the Hub                           words      which words it answers to; near: and which are near
header     the header of a safetensors file             description  a `.safetensors` file in words
single_file  a model in one `.safetensors` file: of `checkpoint`, what its header tells, and `building`, its networks
original   that file's layout, and what a file is (`tell`)
vae_file   an autoencoder in such a file                written    write a model: `to_folder`, `to_file`
digests    of weight files, kept for large ones

Nothing is loaded or downloaded until it is needed. The JSON files in a model's folder are checked by
`sd_ext.model_configs`. To support another form of storage, add a subclass of `Model` and return it from `find_model`;
callers stay as they are. Importing this package does not import torch.
"""

from __future__ import annotations

from .description import describe
from .find import EMBEDDED, find_model, find_part, is_embedded
from .folder import Folder
from .hub import OnHub, is_hub_id
from .mixed import Mixed
from .model import FAMILIES, Model
from .original.told import Told, tell
from .single_file import SingleFile
from .weights import PICKLES, StoredTensor, refuse_pickle

__all__ = [
    "EMBEDDED",
    "FAMILIES",
    "PICKLES",
    "Folder",
    "Mixed",
    "Model",
    "OnHub",
    "SingleFile",
    "StoredTensor",
    "Told",
    "describe",
    "find_model",
    "find_part",
    "is_embedded",
    "is_hub_id",
    "refuse_pickle",
    "tell",
]
