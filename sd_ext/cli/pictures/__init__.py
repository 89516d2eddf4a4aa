"""Picture files: how a picture was made, written into it and read from it, and where it is written.

    record        `Record`: the recipe and what was met when it was drawn     png          texts of PNGs
    encode        pictures with a record as the bytes of a file               destination  names of files
    read          what a picture's file says, whoever wrote it                sheet        contact sheets

Reading decodes no pixels.
"""

from __future__ import annotations

from .destination import Destination, name_stem
from .encode import encode
from .read import read_record
from .record import KEY, Record

__all__ = ["KEY", "Destination", "Record", "encode", "name_stem", "read_record"]
