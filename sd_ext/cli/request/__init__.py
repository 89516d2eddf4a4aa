"""What can be asked of `sd-ext generate`: every option, declared once, in groups.

A group is a frozen dataclass with a title; a field of it is an option of the command and a line of `--help`. `Recipe`
is all that a picture depends on, and is stored in the picture; `Output` and `Run` say where pictures go and how the
command behaves.

    option     `Option`, and the command's signature from groups     recipe    `Recipe`: all of these, as JSON
    words      what to draw                                          output    `Output`: where pictures go
    model      with which weights                                    run       `Run`: how the command behaves
    sampling   how it is drawn                               resources how memory and time are spent
    inputs     from which pictures and networks
    machine    on which device

To add an option that a picture depends on: a field in one of the groups, what it must satisfy in the group's `check`,
and a step in `sd_ext.cli.prepare` or an argument in `sd_ext.cli.drawing`. It is then stored in pictures and comes back
with `--again` and `--from` by itself. torch is not imported here.
"""

from __future__ import annotations

from .option import given, with_options
from .output import Output
from .recipe import Recipe
from .resources import Resources
from .run import Run

__all__ = ["Output", "Recipe", "Resources", "Run", "given", "with_options"]
