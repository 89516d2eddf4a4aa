"""The checksums of a finished run's result, OUT/model.sha256; `sha256sum -c model.sha256` in OUT verifies them too."""

from __future__ import annotations

import logging
from pathlib import Path

from sd_ext import whole
from sd_ext.checked import file_digest
from sd_ext.plain_files import read_text, why_not

log = logging.getLogger(__name__)


def sums_file(result: Path) -> Path:
    """The file with the checksums of a result folder."""
    return result.with_name(f"{result.name}.sha256")


def record(folder: Path, result: Path) -> None:
    """Write the checksums of a result while it is still in a temporary folder.

    Args:
        folder: the temporary folder that holds the files.
        result: the final path of the result, which the checksum file names.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(path)}  {result.name}/{path.relative_to(folder).as_posix()}\n" for path in files]
    whole.write_text(sums_file(result), "".join(lines))


def check(result: Path) -> list[Path]:
    """Verify the checksums of a result. Returns the files that are changed or missing, after a warning for each."""
    if not sums_file(result).is_file():
        return []
    damaged = []
    for line in read_text(sums_file(result)).splitlines():
        wanted, _, name = line.partition("  ")
        path = result.parent / name
        if why_not(path, result.parent) or file_digest(path) != wanted:
            damaged.append(path)
            log.warning(
                "%s is not what the run wrote (its checksum in %s says so): it is damaged or was changed since; remove "
                "%s, and the same command makes it anew from the last checkpoint",
                path, sums_file(result), result,
            )  # fmt: skip
    return damaged
