"""Picture files: how a picture was made, written into it and read from it, and where it is written.

    record    `Record`: the recipe, and what was met when it was drawn     png          texts of PNGs
    encode    a picture with its record as the bytes of a file             exif         texts of JPEGs and WebPs
    read      `Told`: what a file says, whoever wrote it                   destination  names of files
    a1111, objects    the texts of other programs                          sheet        contact sheets
    comfyui           a graph of ComfyUI, with graph and conditioning

Reading decodes no pixels.
"""

from __future__ import annotations

from .destination import Destination, name_stem
from .encode import check_room, encode
from .read import is_picture, read_record, read_told
from .record import KEY, Record
from .told import Told

__all__ = [
    "KEY",
    "Destination",
    "Record",
    "Told",
    "check_room",
    "encode",
    "is_picture",
    "name_stem",
    "read_record",
    "read_told",
]
