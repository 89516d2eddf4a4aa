"""Write a command with a file's name so that it can be pasted into any shell.

bash, zsh, fish, PowerShell and cmd.exe agree on two things: a word of letters, digits and a few signs is itself, and so
is a text in double quotes that holds none of the signs that one of them expands there. Any other name cannot be written
in a way that all five read alike.
"""

from __future__ import annotations

import os
from pathlib import PurePath

from ..errors import printable

BARE = set("_./-")
# Not " ` $ \ ! % nor curly quotes, which PowerShell takes for straight ones.
QUOTED = BARE | set(" +,=@:;()[]{}#^~&'*?<>|")


def pasted(command: str, path: PurePath) -> str:
    """A command that ends with a file's name; with PICTURE, and a line that says why, if no quoting is safe everywhere.

    Args:
        command: what comes before, such as "sd-ext generate --again".
        path: the file.
    """
    name = path.as_posix() if os.name == "nt" else str(path)
    name = f"./{name}" if name.startswith(("-", "~")) else name
    if all(c.isalnum() or c in BARE for c in name):
        return f"{command} {name}"
    if name.isprintable() and all(c.isalnum() or c in QUOTED for c in name):
        return f'{command} "{name}"'
    return f"{command} PICTURE\n(PICTURE is {printable(name)}; some shells change such a name, so quote it for yours)"
