"""The documentation is what the code says: pages of samplers, deviations, code blocks, links and pictures."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import diffusers
import pytest
import torch

import sd_ext
from sd_ext.schedulers.registry import CARRIED
from sd_ext.schedulers.samplers import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
INDEX, DEVIATIONS = DOCS / "samplers" / "README.md", DOCS / "deviations.md"
PAGES = sorted(page for page in (DOCS / "samplers").glob("*.md") if page != INDEX)
OWN = [INDEX, DEVIATIONS, *PAGES]
LARGEST, ALL = 80_000, 4_000_000
"""Bytes of a picture, and of all."""
SHEETS = {"grids.png": 200_000} | {
    f"{name}.png": 250_000 for name in ("compare", "calibration", "which-noise", "which-guidance")
}
"""Pictures that may be larger."""


def part(text: str, word: str) -> str:
    return text.split(f"<!-- {word} -->\n")[1].split(f"<!-- /{word} -->")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a table of samplers by name: order, calls a step, noise, other names, ..."""
    found = re.findall(r"^\| \*\*(.+?)\*\* \| (.*) \|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in found}


def script(name: str) -> ModuleType:
    """A script of benchmarks/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sampler_pages() -> ModuleType:
    return script("sampler_pages")


def test_the_list_of_what_rooms_import_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    architecture = script("architecture")
    text = (DOCS / "architecture.md").read_text("utf-8")
    assert architecture.page(text, architecture.arrows_between_rooms()) == text, "run python benchmarks/architecture.py"


def test_what_the_pages_say_of_the_code_is_up_to_date(sampler_pages):
    stale = [str(p.relative_to(ROOT)) for p, text in sampler_pages.pages().items() if p.read_text("utf-8") != text]
    assert not stale, "run python benchmarks/sampler_pages.py"


def test_the_tables_of_the_options_of_u_nets_are_up_to_date():
    options, text = script("unet_options"), (DOCS / "unets.md").read_text("utf-8")
    assert options.page(text) == text, "run python benchmarks/unet_options.py"
    assert not options.unnamed(text)


def test_every_sampler_is_on_one_page_and_in_the_index():
    on_pages = Counter(name for page in PAGES for name in rows(part(page.read_text("utf-8"), "facts")))
    index = rows(part(INDEX.read_text("utf-8"), "samplers"))
    names = [info.name for family in FAMILIES for info in family.SAMPLERS]
    assert on_pages == Counter(names) and list(index) == names
    assert set(names) <= {info.name for info in sd_ext.list_samplers()}


def test_orders_calls_and_names_are_the_codes():
    tables = [part(INDEX.read_text("utf-8"), "samplers"), *(part(p.read_text("utf-8"), "facts") for p in PAGES)]
    infos = {info.name: info for info in sd_ext.list_samplers()}
    for table in tables:
        for name, (order, calls, noise, aliases, *_) in rows(table).items():
            info = infos[name]
            assert (order, calls) == ("none" if info.order is None else str(info.order), info.calls)
            assert (noise == "fresh") == info.stochastic
            assert tuple(filter(None, aliases.split(", "))) == info.aliases


def test_every_option_is_explained(sampler_pages):
    for infos in (*(family.SAMPLERS for family in FAMILIES), CARRIED.values()):
        for cls in {info.cls for info in infos}:
            for option in sampler_pages.own_options(cls):
                assert sampler_pages.meaning(cls, option), f"{cls.__name__}'s docstring does not explain {option}"


def test_every_deviation_is_listed_and_every_one_listed_is_a_test():
    tests = [p for p in (ROOT / "tests").rglob("test_*.py") if p != Path(__file__).resolve()]
    defined = {name for p in tests for name in re.findall(r"^def (test_deviation_\w+)", p.read_text("utf-8"), re.M)}
    listed = re.findall(r"`(test_deviation_\w+)`", DEVIATIONS.read_text("utf-8"))
    assert Counter(listed) == Counter(defined)


# ---- code, links, pictures -------------------------------------------------------------------------------------------


def blocks(page: Path) -> list[tuple[str, str | None]]:
    """(code, what it prints or None) of each block of Python."""
    found = re.findall(
        r"^```python\n(.*?)^```(?:\n+```text\n(.*?)^```)?", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return [(code, shown or None) for code, shown in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_python_of_a_page_runs_and_prints_what_it_says(page):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    names = {
        "sd_ext": sd_ext,
        "pipe": type("Pipe", (), {"scheduler": diffusers.DDIMScheduler(**config), "unet": torch.nn.Identity()})(),
    }
    assert blocks(page)
    for code, shown in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), names)
        if shown is not None:
            assert [line.rstrip() for line in printed.getvalue().splitlines()] == shown.splitlines()
    if isinstance(names["pipe"].scheduler, sd_ext.DDIMScheduler):
        return
    names["pipe"].scheduler.set_timesteps(8)
    assert len(names["pipe"].scheduler.timesteps) == 8


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"", text)
    for link in (link for pair in links for link in pair if link and "://" not in link):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text("utf-8")), link


def test_every_family_has_its_picture_and_pictures_are_small():
    for page in PAGES:
        assert f"](../images/samplers/{page.stem}.png)" in page.read_text("utf-8"), page.name
    pictures = list((DOCS / "images").rglob("*.png"))
    sizes = {p.name: p.stat().st_size for p in pictures}
    assert {p.stem for p in pictures if p.parent.name == "samplers"} == {p.stem for p in PAGES}
    assert all(size < SHEETS.get(name, LARGEST) for name, size in sizes.items()) and sum(sizes.values()) < ALL


@pytest.mark.parametrize("page", OWN, ids=lambda p: p.stem)
def test_pages_are_well_formed(page):
    text = page.read_text("utf-8")
    assert text.count("```") % 2 == 0 and text.endswith("\n") and "\n\n\n" not in text
    for math in re.findall(r"^```math\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        assert math.count("{") == math.count("}"), math
        assert len(re.findall(r"\\left\b", math)) == len(re.findall(r"\\right\b", math)), math
    for lines in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}
        assert len(widths) == 1, lines
