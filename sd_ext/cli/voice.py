"""What `sd-ext generate` writes: paths or JSON on the standard output, all else on the standard error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import printable
from .pictures import Record

if TYPE_CHECKING:
    from rich.progress import Progress


class Voice:
    """How a command speaks.

    Args:
        quiet: leave out progress and hints. What is ignored, cut or far from usual is said all the same.
        as_json: one JSON object for each picture on the standard output, instead of its path.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False):
        from rich.console import Console

        self.quiet, self.as_json = quiet, as_json
        self.console = Console(stderr=True, highlight=False)
        self._told: set[str] = set()

    def tell(self, text: str) -> None:
        """Say, once, that something is dropped, cut, guessed or ignored."""
        if text not in self._told:
            self._told.add(text)
            self._print(text, "yellow")

    def hint(self, text: str) -> None:
        """Say something that may be left out."""
        if not self.quiet:
            self._print(text, "")

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Show, within the block, that something is being done."""
        return contextlib.nullcontext() if self.quiet else self.console.status(what)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar on the standard error, within the block."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Speed(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.2f} a second" if task.speed else "")

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn()
        hidden = self.quiet or not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, redirect_stdout=False, disable=hidden) as bar:
            yield bar

    def picture(self, path: Path, record: Record | None) -> None:
        """Report a file that has been written.

        Args:
            path: the file.
            record: how it was made; None for a contact sheet, which is not among the JSON objects.
        """
        if not self.as_json:
            print(path, flush=True)
        elif record is not None:
            print(json.dumps({"path": str(path), **record.as_json()}), flush=True)
        else:
            self.hint(f"contact sheet: {path}")
