"""Licences by the names that the Hub's cards have for them."""

from __future__ import annotations

from ..errors import InputError, UnknownNameError

OTHER = "other"
LICENCES = (
    "apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m",
    "bigcode-openrail-m", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0", "cc-by-3.0", "cc-by-sa-3.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "isc", "zlib", "unlicense", "wtfpl", "mpl-2.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "gpl", "gpl-2.0", "gpl-3.0",
    "agpl-3.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "osl-3.0", "afl-3.0", "artistic-2.0", "bsl-1.0",
    "ecl-2.0", "ms-pl", "postgresql", "ncsa", "pddl", "odbl", "odc-by", "gfdl", "unknown", OTHER,
)  # fmt: skip
"""Those of https://huggingface.co/docs/hub/repositories-licenses that models are published under."""


def licence_entries(licence: str | None, link: str | None = None) -> dict[str, str]:
    """The entries of a card for a licence that was given by its name; none for None.

    Raises:
        InputError: the name is unknown, or `other` without a link to its text.
    """
    if licence is None:
        if link is not None:
            raise InputError(
                "--license-link needs --license too; for one that the Hub has no name for, --license other"
            )
        return {}
    name = licence.strip().lower()
    if name not in LICENCES:
        raise UnknownNameError("licence (other, with --license-link, for any without a name)", licence, LICENCES)
    if name == OTHER and not link:
        raise InputError("--license other needs --license-link URL, where its text can be read")
    if link is not None and not link.startswith("https://"):
        raise InputError(f"--license-link {link}: give an address that begins with https://")
    return {"license": name, **({"license_link": link} if link else {})}
