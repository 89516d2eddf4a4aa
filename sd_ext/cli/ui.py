"""`sd-ext ui`: a page in the browser."""

from __future__ import annotations

import importlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from ..errors import InputError
from .pictures import Destination
from .request import given, with_options
from .request.machine import DEVICES, DTYPES, Machine
from .request.option import Group, Option
from .voice import Voice

MOST_WAITING = 10_000
PAGE, SPACE = "sd_ext.ui.serve", "sd_ext.ui.space"
"""The page lies above this room, whose functions it calls; so it is found by its name."""


@dataclass(frozen=True, kw_only=True)
class Offered(Group):
    """What the page offers."""

    title: ClassVar[str] = "What the page offers"

    model: Annotated[
        tuple[str, ...],
        Option("A model, or a folder, for all models in it; repeat for more.", "PATH_OR_ID", "embedded", path=True),
    ] = ()
    lora: Annotated[
        tuple[str, ...],
        Option("A LoRA, or a folder, for all LoRAs in it; repeat for more.", "PATH_OR_ID", path=True),
    ] = ()
    out: Annotated[Path | None, Option("Keep every picture in this folder too.", "DIR", path=True)] = None
    device: Annotated[str, Option("As of sd-ext generate.", "auto|cpu|cuda[:N]|mps", values=DEVICES)] = "auto"
    dtype: Annotated[str, Option("As of sd-ext generate.", "auto|fp32|fp16|bf16", values=DTYPES)] = "auto"


@dataclass(frozen=True, kw_only=True)
class Reached(Group):
    """Who reaches it."""

    title: ClassVar[str] = "Who reaches it"

    host: Annotated[str, Option("The address to listen at: this machine alone, unless told.", "ADDRESS")] = "127.0.0.1"
    port: Annotated[int, Option("0 takes a free one.", "N")] = 7860
    shared: Annotated[bool, Option("Let others draw: needed for addresses that others reach.")] = False
    waiting: Annotated[int, Option("Drawings that may wait for their turn.", "N")] = 24
    open: Annotated[bool, Option("Open the page in a browser.")] = False
    space: Annotated[
        Path | None, Option("Write a Hugging Face Space with this page to a folder, and stop.", "DIR", path=True)
    ] = None

    def check(self) -> None:
        """Raise `InputError` for an address that cannot be, or that others reach without `shared`."""
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port} cannot work; choose 1 to 65535, or 0 for a free one")
        if not 1 <= self.waiting <= MOST_WAITING:
            raise InputError(f"--waiting {self.waiting} cannot work; choose 1 to {MOST_WAITING:,}")
        if not (self.shared or self.loopback):
            raise InputError(
                f"--host {self.host} lets everyone who reaches this machine draw on it; give --shared too if that is "
                "meant, or leave --host out"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the address. Raises `InputError` for what is no address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            raise InputError(f"--host {self.host!r} is no address; write one such as 127.0.0.1 or 0.0.0.0") from None


@with_options(Offered, Reached)
def ui(**options: Any) -> None:
    """Open a page in the browser: draw, compare side by side, plot, and take the code of a picture."""
    offered, reached = Offered(**given(Offered, options)), Reached(**given(Reached, options))
    reached.check()
    Machine(device=offered.device, dtype=offered.dtype).check()
    voice = Voice()
    if reached.space is not None:
        for path in importlib.import_module(SPACE).write_space(reached.space, offered.model, offered.lora):
            print(path)
        return
    if offered.out is not None:
        Destination.check(offered.out, 2, overwrite=False)
    if not reached.loopback:
        voice.tell(
            f"Everyone who reaches {reached.host} can draw on this machine; there is no password, and what is sent can "
            "be read on the way."
        )
    page = importlib.import_module(PAGE)
    served = page.Served(
        models=offered.model, loras=offered.lora, out=offered.out, device=offered.device, dtype=offered.dtype,
        host=reached.host, port=reached.port, shared=reached.shared, waiting=reached.waiting, open=reached.open,
    )  # fmt: skip
    with voice.busy("Starting the page"):
        server = page.serve(served, voice.tell)
    print(server.url, flush=True)
    voice.hint("Ctrl-C ends it.")
    try:
        server.wait()
    finally:
        server.close()
