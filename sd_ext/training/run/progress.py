"""The display of a training run: a progress bar with loss and time left, or plain lines without a terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """A progress bar with the smoothed loss; if the output is no terminal, a line every `log_every` steps instead.

    Args:
        title: shown before the bar.
        total: steps of the whole run.
        done: steps done before the run was resumed.
        log_every: steps between two lines.
        shown: whether this process shows anything; True in the first process only.
    """

    def __init__(self, title: str, total: int, done: int, log_every: int, shown: bool = True):
        self.console = Console(quiet=not shown)
        self.title, self.total, self.first, self.log_every = title, total, done, log_every
        self.start, self.loss = time.monotonic(), None
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=self.console,
            disable=not (shown and self.console.is_terminal),
        )  # fmt: skip
        self.task = self.bar.add_task(title, total=total, completed=done, loss="-")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show that `step` steps are done, with the metrics of the last one."""
        self.loss = metrics["loss"] if self.loss is None else 0.98 * self.loss + 0.02 * metrics["loss"]
        self.bar.update(self.task, completed=step, loss=f"{self.loss:.4g}")
        if not self.console.is_terminal and (step % self.log_every == 0 or step == self.total):
            rate = (step - self.first) / (time.monotonic() - self.start)
            values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            left = (self.total - step) / rate / 60
            self.say(f"{self.title} step {step}/{self.total}  {values}  {rate:.2f} steps/s  {left:.0f} min left")
