"""Many pictures: numbered, dealt over processes, and gone on with after a stop.

    OUT/manifest.jsonl       what is to be drawn, a line each: file, prompt, seed and all other settings
    OUT/000012.png           picture 12; or, with shards,
    OUT/shard-00001.tar      pictures with their prompts and settings, as WebDataset reads them

A picture is done when its file is there, for files appear whole or not at all. So nothing else has to be noted: the
same command draws what is missing, with any number of processes, and a picture depends on its own line only. Pictures
of a shard that is not complete wait in the folder `shard-00001.parts`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import whole
from ..errors import InputError, TakenError
from ..plain_files import MIB, PICTURE_BYTES, read_bytes
from .processes import Processes
from .request import Recipe

MANIFEST = "manifest.jsonl"
MANIFEST_BYTES = 4096 * MIB


@dataclass(frozen=True)
class Job:
    """Pictures to draw into a folder.

    Args:
        folder: the folder.
        recipes: one for each picture, in their order.
        ending: of the pictures' files, such as ".png".
        shard: pictures in a shard; 0 for single files.
    """

    folder: Path
    recipes: Sequence[Recipe]
    ending: str = ".png"
    shard: int = 0

    def name(self, number: int) -> str:
        """The name of a picture's file."""
        return f"{number:06d}{self.ending}"

    def begin(self) -> None:
        """Write the manifest, or find that it is there already.

        Raises:
            InputError: the folder holds another manifest, or pictures of something else.
            WriteError: it cannot be written.
        """
        lines = [
            json.dumps({"file": self.name(number), **recipe.as_json()}, ensure_ascii=False)
            for number, recipe in enumerate(self.recipes)
        ]
        data, path = ("\n".join(lines) + "\n").encode(), self.folder / MANIFEST
        if not path.exists() and self.folder.is_dir() and (there := self._there()):
            raise InputError(f"{self.folder} holds {there}, and no {MANIFEST} that says of what; choose another folder")
        try:
            whole.write_bytes(path, data, overwrite=False)
        except TakenError:
            self._compare(read_bytes(path, MANIFEST_BYTES), data)

    def _there(self) -> str:
        """The name of a file that this job would write and that is there before it has begun."""
        names = (self.name(0), self._tar(0).name) if self.recipes else ()
        return next((name for name in names if (self.folder / name).exists()), "")

    def _compare(self, found: bytes, wanted: bytes) -> None:
        if found == wanted:
            return
        pairs = zip(found.split(b"\n"), wanted.split(b"\n"), strict=False)
        line = next((number for number, (a, b) in enumerate(pairs, 1) if a != b), 1)
        raise InputError(
            f"{self.folder / MANIFEST} is of other pictures (line {line} differs): give the same command to go on, or "
            "another folder"
        )

    def missing(self, processes: Processes) -> list[int]:
        """Numbers of the pictures that this process has to draw, in order."""
        whole.sweep(self.folder)
        if not self.shard:
            dealt = range(processes.number, len(self.recipes), processes.count)
            return [number for number in dealt if not self._path(number).exists()]
        shards = range(processes.number, self.shards, processes.count)
        open_shards = [shard for shard in shards if not self._tar(shard).exists()]
        return [n for shard in open_shards for n in self.numbers(shard) if not self._path(n).exists()]

    @property
    def shards(self) -> int:
        """How many shards there will be."""
        return -(-len(self.recipes) // self.shard) if self.shard else 0

    def numbers(self, shard: int) -> range:
        """The numbers of a shard's pictures."""
        return range(shard * self.shard, min(len(self.recipes), (shard + 1) * self.shard))

    def write(self, number: int, data: bytes) -> Path:
        """Write a picture, completely or not at all.

        Raises:
            WriteError: it cannot be written.
        """
        path = self._path(number)
        whole.write_bytes(path, data, overwrite=False)
        return path

    def pack(self, processes: Processes, number: int | None = None) -> list[Path]:
        """Make a shard of every complete set of parts that this process is dealt, and remove the parts.

        Args:
            processes: says which are dealt.
            number: of a picture: look at its shard only.

        Returns:
            The paths of the new shards.
        """
        made = []
        dealt = range(processes.number, self.shards, processes.count)
        for shard in dealt if number is None else [number // self.shard]:
            tar, parts = self._tar(shard), self._parts(shard)
            if not tar.exists() and all(self._path(number).exists() for number in self.numbers(shard)):
                self._pack(shard)
                made.append(tar)
            if tar.exists() and parts.exists():
                whole.remove(parts)
        return made

    def _pack(self, shard: int) -> None:
        """Write the tar archive of a shard: the same bytes whenever and wherever it is made."""
        with (
            whole.file(self._tar(shard), overwrite=False) as new,
            tarfile.open(new, "w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for number in self.numbers(shard):
                recipe = self.recipes[number]
                settings = json.dumps(recipe.as_json(), ensure_ascii=False).encode()
                stem = Path(self.name(number)).stem
                picture, prompt = read_bytes(self._path(number), PICTURE_BYTES), recipe.prompt.encode()
                for ending, data in ((self.ending, picture), (".json", settings), (".txt", prompt)):
                    entry = tarfile.TarInfo(stem + ending)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))

    def _tar(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.tar"

    def _parts(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.parts"

    def _path(self, number: int) -> Path:
        return (self._parts(number // self.shard) if self.shard else self.folder) / self.name(number)
