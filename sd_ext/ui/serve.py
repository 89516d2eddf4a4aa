"""The server of the page."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, SdExtError
from .limits import OWN, SHARED, Limits
from .offer import Offer, offer
from .settings import Settings, recipe_of
from .studio import Studio
from .work import Desk

MAX_UPLOAD = "40mb"


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the page offers, and to whom.

    Args:
        models, loras: files, Hub ids, and folders all of whose models or LoRAs are offered.
        host: the address to listen at.
        port: 0 takes a free one.
        shared: whether strangers may draw: then they may ask for less at once.
        out: a folder where every picture is kept.
        device, dtype: as `sd-ext generate` takes them.
        waiting: drawings that may wait for their turn.
        open: whether to open the page in a browser.
    """

    models: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    shared: bool = False
    out: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    waiting: int = 24
    open: bool = False

    @property
    def limits(self) -> Limits:
        """How much a visitor may ask for."""
        return SHARED if self.shared else OWN


@dataclass
class Server:
    """A page that is being served.

    Args:
        url: its address.
        page: the `gradio.Blocks`.
    """

    url: str
    page: Any
    _held: list[Any] = field(default_factory=list)

    def wait(self) -> None:
        """Until the process is interrupted."""
        self.page.block_thread()

    def close(self) -> None:
        """End it, and remove what was shown."""
        self.page.close(verbose=False)
        for each in self._held:
            each.cleanup()


def serve(served: Served, told: Callable[[str], object] = print) -> Server:
    """Start the page. The model that it opens on is loaded meanwhile.

    Args:
        served: what is offered.
        told: gets a sentence for each thing that is worth saying.

    Raises:
        InputError: Gradio is not installed, a place is not there, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the page needs Gradio, which is not installed; pip install "sd_ext[ui]"')
    models, loras = offers(served, told)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is reported to anybody
    import gradio  # noqa: F401  # seconds

    from ..cli.silence import silence_torch
    from .handlers import Handlers
    from .page import build, look

    silence_torch()
    folder = tempfile.TemporaryDirectory(prefix="sd-ext-ui-")
    studio = Studio(device=served.device, dtype=served.dtype)
    desk = Desk(studio, Path(folder.name), models, loras, served.limits, served.out, local=not served.shared)

    def look_again() -> None:
        desk.models, desk.loras = offers(served, lambda text: None)

    page = build(Handlers(desk, look_again))
    page.queue(max_size=served.waiting, default_concurrency_limit=4, api_open=False)
    try:
        _, url, _ = page.launch(
            server_name=served.host, server_port=served.port or _free_port(served.host), share=False, quiet=True,
            inbrowser=served.open, prevent_thread_lock=True, max_file_size=MAX_UPLOAD, show_error=False,
            ssr_mode=False, enable_monitoring=False, mcp_server=False, **look(),
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"cannot listen at {served.host}:{served.port} ({error}); choose another --port") from None
    threading.Thread(target=_load, args=(studio, models, told), name="sd-ext-ui-load", daemon=True).start()
    return Server(url, page, [folder])


def offers(served: Served, told: Callable[[str], object]) -> tuple[Offer, Offer]:
    """The models and the LoRAs that are there now. Raises `InputError`."""
    return offer("model", served.models, told), offer("LoRA", served.loras, told)


def _load(studio: Studio, models: Offer, told: Callable[[str], object]) -> None:
    """Load the model that the page opens on. What is wrong with it is said; and again to who draws with it."""
    try:
        studio.load(recipe_of(Settings(prompt="none", model=models.names[0]), models, Offer("LoRA", {})))
    except SdExtError as error:
        told(str(error))


def _free_port(host: str) -> int:
    """A port that nobody listens at."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
