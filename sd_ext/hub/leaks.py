"""What must not be published: paths, accounts and tokens, wherever they stand in a text.

A find is told by its kind and its place; the string itself is never repeated.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|sk-[\w-]{20,})|://[^/\s:@]+:[^/\s:@]+@"
)
ROOTS = (
    "home|root|mnt|media|data|datasets|tmp|var|opt|usr|etc|srv|run|scratch|work|workspace|content|kaggle|Users|Volumes"
)
# A slash after a word, a slash or `<` divides words, or belongs to a URL or a tag.
POSIX_PATH = re.compile(rf"(?<![\w/.<~])/(?:[\w.@+~-]+/[\w.@+~-]|(?:{ROOTS})\b)|\bfile://")
WINDOWS_PATH = re.compile(r"(?<![A-Za-z])[A-Za-z]:(?:\\{1,2}|/)\w|(?<!\\)\\\\[\w.$-]+\\[\w.$-]")
HOME_PATH = re.compile(r"(?<![\w~/])~[\w-]*[/\\]\w|\$HOME\b|%USERPROFILE%")
NOBODY = {"root", "user", "ubuntu", "admin", "runner", "jovyan", "nobody", "docker", "vagrant", "app"}


@dataclass(frozen=True)
class Secrets:
    """What identifies this machine's user. `of_this_machine` finds it out.

    Args:
        home: the home directory.
        user: the account's name; "" for one that names nobody.
        token: the Hub token in use.
        meant: texts that are published on purpose and may hold the account's name, such as the repository's id.
    """

    home: str = ""
    user: str = ""
    token: str = field(default="", repr=False)
    meant: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls, meant: Iterable[str] = ()) -> Secrets:
        from huggingface_hub import get_token

        try:
            home, user = str(Path.home()), getpass.getuser()
        except (KeyError, OSError, RuntimeError):  # a container's user without an entry in the password file
            home, user = "", ""
        user = "" if user.lower() in NOBODY or len(user) < 2 else user
        return cls("" if home == "/" else home, user, get_token() or "", tuple(filter(None, meant)))


def find_leaks(text: str, secrets: Secrets) -> list[str]:
    """The kinds of what must not be published in `text`, such as `"an absolute path"`; empty if there is none."""
    checks = {
        "an access token": TOKEN.search(text) or (secrets.token and secrets.token in text),
        "the home directory": _holds(text, secrets.home) or HOME_PATH.search(text),
        "an absolute path": POSIX_PATH.search(text) or WINDOWS_PATH.search(text),
        "the user's account name": _names_user(text, secrets),
    }
    return [kind for kind, found in checks.items() if found]


def _holds(text: str, path: str) -> bool:
    return bool(path) and bool(re.search(rf"(?<![\w.]){re.escape(path)}(?![\w-])", text))


def _names_user(text: str, secrets: Secrets) -> bool:
    """Whether the account's name stands as an account or as a part of a path.

    Only there: many are called `art`, `max` or `will`, and those are words too.
    """
    if not secrets.user:
        return False
    for meant in secrets.meant:
        text = text.replace(meant, " ")
    user = re.escape(secrets.user)
    return text.strip() == secrets.user or bool(re.search(rf"(?<![\w.-]){user}@|[/\\]{user}[/\\]", text))
