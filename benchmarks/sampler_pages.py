"""What the code knows about samplers, written into their pages: docs/samplers/<family>.md and README.md there.

python benchmarks/sampler_pages.py [--check]

Between `<!-- facts -->` and `<!-- /facts -->` of a family's page: its samplers, from `SamplerInfo`, and the options of
their classes, from the docstrings. Between `<!-- table NAME, CALLS -->` and `<!-- /table -->`: that sampler's printed
table and the code for it. Between `<!-- samplers -->` and `<!-- /samplers -->` of the index: every sampler. What is
around them is written by hand. A family without a page gets one that has these parts only.
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from types import ModuleType

import diffusers

import sd_ext
from sd_ext.schedulers import SamplerInfo, TableScheduler
from sd_ext.schedulers.samplers import FAMILIES

DOCS = Path(__file__).parent.parent / "docs"
PAGES = DOCS / "samplers"
INDEX = PAGES / "README.md"
REPOSITORY_TESTS = "../../tests/schedulers"


def family_of(module: ModuleType) -> str:
    return module.__name__.rsplit(".", 1)[1]


def families() -> dict[str, ModuleType]:
    """The family modules by name, in the order of `list_samplers`."""
    return {family_of(module): module for module in FAMILIES}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def source(text: str) -> str:
    """With arXiv numbers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", text)


def value(of: object) -> str:
    return f'"{of}"' if isinstance(of, str) else repr(of)


# ---- facts -----------------------------------------------------------------------------------------------------------


def described(cls: type) -> dict[str, str]:
    """The options a class's docstring describes, by its `Args:`."""
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    if "Args:\n" not in doc:
        return {}
    found: dict[str, str] = {}
    entries = re.split(r"\n(?=    \S)", re.split(r"\n\n", doc.split("Args:\n", 1)[1])[0])
    for entry in entries:
        names, text = entry.strip().split(":", 1)
        found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found


def meaning(cls: type[TableScheduler], option: str) -> str:
    """What the docstring of the class, or of the base that it points to, says about an option."""
    known = [described(base)[option] for base in cls.__mro__ if option in described(base)]
    own = [text for text in known if not text.startswith("see `")]
    return own[0] if own else ""


def own_options(cls: type[TableScheduler]) -> dict[str, object]:
    return {name: default for name, default in cls._options.items() if name not in TableScheduler._options}


def other_defaults(cls: type[TableScheduler]) -> dict[str, object]:
    base = TableScheduler._options
    return {name: d for name, d in cls._options.items() if name in base and base[name] != d}


def class_facts(cls: type[TableScheduler], infos: list[SamplerInfo]) -> list[str]:
    def call(info: SamplerInfo) -> str:
        options = {k: v for k, v in info.options.items() if cls._options[k] != v}
        return f"{cls.__name__}({', '.join(f'{k}={value(v)}' for k, v in options.items())})"

    twin = " Diffusers has a class of this name." if hasattr(diffusers, cls.__name__) else ""
    lines = [f"**`{cls.__name__}`.**{twin}"]
    if other_defaults(cls):
        listed = ", ".join(f"`{name}={value(default)}`" for name, default in other_defaults(cls).items())
        lines[0] += f" Other defaults than the rest: {listed}."
    lines += ["", *(f"- {info.name}: `{call(info)}`" for info in infos)]
    own = own_options(cls)
    if own:
        rows = [(f"`{name}`", f"`{value(default)}`", meaning(cls, name)) for name, default in own.items()]
        lines += ["", *table(("option", "default", ""), rows)]
    return [*lines, ""]


def facts(module: ModuleType) -> str:
    """The samplers of a family and the options of their classes."""
    rows = [
        (
            f"**{info.name}**",
            "none" if info.order is None else str(info.order),
            info.calls,
            "fresh" if info.stochastic else "",
            ", ".join(info.aliases),
            source(info.source),
            info.note,
        )
        for info in module.SAMPLERS
    ]
    lines = table(("sampler", "order", "calls a step", "noise", "also called", "source", "note"), rows)
    proofs = f"[`test_orders.py`]({REPOSITORY_TESTS}/test_orders.py)"
    moments = f"[`test_stochastic.py`]({REPOSITORY_TESTS}/test_stochastic.py)"
    lines += ["", f"Orders are proven in {proofs}" + (
        f", those of stochastic samplers for their deterministic limit, and their moments in {moments}."
        if any(info.stochastic for info in module.SAMPLERS) else "."
    )] if any(info.order is not None for info in module.SAMPLERS) else []  # fmt: skip
    lines += ["", "### Options", ""]
    for cls in dict.fromkeys(info.cls for info in module.SAMPLERS):
        lines += class_facts(cls, [info for info in module.SAMPLERS if info.cls is cls])
    common = "[those of every scheduler](README.md#options-of-every-scheduler)"
    return "\n".join([*lines, f"Besides these, {common}."])


# ---- printed tables, index -------------------------------------------------------------------------------------------


def printed(name: str, calls: int) -> str:
    """A sampler's table and the code that prints it."""
    scheduler = sd_ext.make_scheduler(name)
    scheduler.set_timesteps(calls)
    code = f'scheduler = sd_ext.make_scheduler("{name}")\nscheduler.set_timesteps({calls})\nprint(scheduler.table())'
    shown = "\n".join(line.rstrip() for line in str(scheduler.table()).splitlines())
    return f"```python\n{code}\n```\n\n```text\n{shown}\n```"


def index() -> str:
    rows = [
        (
            f"**{info.name}**",
            "none" if info.order is None else str(info.order),
            info.calls,
            "fresh" if info.stochastic else "",
            ", ".join(info.aliases),
            f"[{name}]({name}.md)",
        )
        for name, module in families().items()
        for info in module.SAMPLERS
    ]
    return "\n".join(table(("sampler", "order", "calls a step", "noise", "also called", "page"), rows))


# ---- pages -----------------------------------------------------------------------------------------------------------


def fill(text: str, marker: str, content: str) -> str:
    """`text` with what is between the marker and its end replaced."""
    word = marker.split()[0]
    pattern = rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- /{word} -->)"
    if not re.search(pattern, text, re.DOTALL):
        raise ValueError(f"no <!-- {marker} --> ... <!-- /{word} -->")
    return re.sub(pattern, lambda m: f"{m[1]}\n{content}\n\n{m[2]}", text, flags=re.DOTALL)


def page(module: ModuleType, text: str) -> str:
    """A family's page with its generated parts up to date."""
    text = fill(text, "facts", facts(module))
    for marker, name, calls in re.findall(r"<!-- (table ([^,]+), (\d+)) -->", text):
        text = fill(text, marker, printed(name, int(calls)))
    return text


def new_page(module: ModuleType) -> str:
    name, first = family_of(module), (module.__doc__ or "").split("\n\n")[0].strip()
    sampler = module.SAMPLERS[0].name
    return (
        f"# {name.replace('_', ' ').capitalize()}\n\n{first}\n\n## Samplers\n\n<!-- facts -->\n<!-- /facts -->\n\n"
        f"## Example\n\n<!-- table {sampler}, 5 -->\n<!-- /table -->\n"
    )


def pages() -> dict[Path, str]:
    """Every generated page by path, as it should be."""
    made = {}
    for name, module in families().items():
        path = PAGES / f"{name}.md"
        made[path] = page(module, path.read_text("utf-8") if path.exists() else new_page(module))
    made[INDEX] = fill(INDEX.read_text("utf-8"), "samplers", index())
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text("utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(pages()[path], "utf-8")
        print(f"{'out of date' if check else 'wrote'}: {path}")
    if check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
