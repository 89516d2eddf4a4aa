"""Models on disk: the one place that knows what a folder, a Hub id or "embedded" holds, and how it is read.

    model = find_model("path/to/pipeline")      # or "owner/name" on the Hub, or "embedded"; nothing is loaded yet
    model.check()                               # all parts there, as safetensors
    model.family, model.noise()                 # "sd15", "sd21" or "sdxl"; betas and prediction type
    unet = model.load("unet", torch.float16)    # one part, or `load_pipeline` for all

find       what a user's words mean              weights    weight files: variants, pieces, no pickles
model      what can be asked of any model        pipeline   a whole Diffusers pipeline, quietly
folder     a pipeline folder                     mixed      parts of several models
hub        one on the Hub                        and beside this room, `sd_ext.model_configs`: the JSON in a model

Another kind of place (such as a single file) is another subclass of `Model`, which `find_model` returns; those who call
it need not know. Importing this imports no torch.
"""

from __future__ import annotations

from .find import EMBEDDED, find_model, find_part, is_embedded
from .folder import Folder
from .hub import OnHub, is_hub_id
from .mixed import Mixed
from .model import FAMILIES, Model
from .weights import PICKLES, StoredTensor, refuse_pickle

__all__ = [
    "EMBEDDED",
    "FAMILIES",
    "PICKLES",
    "Folder",
    "Mixed",
    "Model",
    "OnHub",
    "StoredTensor",
    "find_model",
    "find_part",
    "is_embedded",
    "is_hub_id",
    "refuse_pickle",
]
