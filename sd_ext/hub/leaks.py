"""Find what must not be published in a text: paths, account names and access tokens.

A finding is reported by its kind and place; of the string itself no more than a few characters and stars are shown.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|sk-[\w-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}"
    r"|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{20,}|r8_[A-Za-z0-9]{37}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
    r"|://[^/\s:@]+:[^/\s:@]+@|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|(?i:aws_?secret_?access_?key)\W{1,6}[A-Za-z0-9/+]{40}"
)
"""Of the Hub, GitHub, GitLab, OpenAI, AWS, Google, Slack, npm, PyPI and Replicate; JSON web tokens; passwords in
addresses; private keys."""
MAIL = re.compile(r"(?<![\w.+/-])[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}(?![\w-])")
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Characters that steer a screen: controls, and those that turn the direction of what follows."""
ROOTS = (
    "home|root|mnt|media|data|datasets|tmp|var|opt|usr|etc|srv|run|scratch|work|workspace|content|kaggle|Users|Volumes"
)
# No path: a slash after a word (and/or), after another slash (a URL) or after `<` (a closing tag).
POSIX_PATH = re.compile(rf"(?<![\w/.<~])/(?:[\w.@+~-]+/[\w.@+~-]|(?:{ROOTS})\b)|\bfile://")
WINDOWS_PATH = re.compile(r"(?<![A-Za-z])[A-Za-z]:(?:\\{1,2}|/)\w|(?<!\\)\\\\[\w.$-]+\\[\w.$-]")
HOME_PATH = re.compile(r"(?<![\w~/])~[\w-]*[/\\]\w|\$HOME\b|%USERPROFILE%")
NOBODY = {"root", "user", "ubuntu", "admin", "runner", "jovyan", "nobody", "docker", "vagrant", "app"}


@dataclass(frozen=True)
class Secrets:
    """The strings that identify this machine's user; `of_this_machine` collects them.

    Args:
        home: the home directory.
        user: the account's name; "" for a generic one, such as "root".
        token: the Hub token in use.
        meant: texts that are published on purpose and may contain the account's name, such as the repository's id.
        mail: whether mail addresses may be published.
    """

    home: str = ""
    user: str = ""
    token: str = field(default="", repr=False)
    meant: tuple[str, ...] = ()
    mail: bool = False

    @classmethod
    def of_this_machine(cls, meant: Iterable[str] = (), mail: bool = False) -> Secrets:
        """Collect them. `meant`, `mail`: see `Secrets`."""
        from huggingface_hub import get_token

        try:
            home, user = str(Path.home()), getpass.getuser()
        except (KeyError, OSError, RuntimeError):  # a container's user without an entry in the password file
            home, user = "", ""
        user = "" if user.lower() in NOBODY or len(user) < 2 else user
        return cls("" if home == "/" else home, user, get_token() or "", tuple(filter(None, meant)), mail)


def find_leaks(text: str, secrets: Secrets) -> list[str]:
    """Look for what must not be published.

    Args:
        text: the text to search.
        secrets: the strings that identify the user.

    Returns:
        The kinds found, such as `"an absolute path"`; empty if there are none. Tokens and mail addresses are shown with
        stars, to be found by their beginnings.
    """
    token, address = TOKEN.search(text), None if secrets.mail else MAIL.search(text)
    checks = {
        f"an access token ({starred(token[0])})" if token else "an access token": token
        or (secrets.token and secrets.token in text),
        f"a mail address ({starred(address[0])})" if address else "": address,
        "the home directory": _holds(text, secrets.home) or HOME_PATH.search(text),
        "an absolute path": POSIX_PATH.search(text) or WINDOWS_PATH.search(text),
        "the user's account name": _names_user(text, secrets),
    }
    return [kind for kind, found in checks.items() if found]


def starred(secret: str) -> str:
    """The first three characters of a secret, and stars."""
    return f"{secret[:3]}***"


def shown(text: str) -> str:
    """`text` with the characters that steer a screen written as escapes. Joiners stay, of which letters are made."""
    return STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _holds(text: str, path: str) -> bool:
    """Whether `text` contains `path`, not merely as the beginning or end of a longer name."""
    return bool(path) and bool(re.search(rf"(?<![\w.]){re.escape(path)}(?![\w-])", text))


def _names_user(text: str, secrets: Secrets) -> bool:
    """Whether the account's name appears as an account (`name@`), as a part of a path, or as the whole text.

    Elsewhere it is ignored: many accounts are called `art`, `max` or `will`, which are also ordinary words.
    """
    if not secrets.user:
        return False
    for meant in secrets.meant:
        text = text.replace(meant, " ")
    user = re.escape(secrets.user)
    return text.strip() == secrets.user or bool(re.search(rf"(?<![\w.-]){user}@|[/\\]{user}[/\\]", text))
