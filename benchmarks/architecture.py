"""What imports what, room by room: draws docs/images/architecture.png and writes the table of docs/architecture.md.

    python benchmarks/architecture.py              # the picture, the table, and results/architecture.md
    python benchmarks/architecture.py OTHER/TREE   # prints the numbers of another checkout, to compare

A room is a folder of `sd_ext`; the files beside them are one room, the ground floor. Imports inside functions and for
type checkers count. A room stands one floor above the highest room that it imports.
"""

from __future__ import annotations

import ast
import io
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _report import write  # noqa: E402

from tests import source  # noqa: E402  # reads the imports, for the tests that hold them in order too

PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "images" / "architecture.png"
MARKS = "<!-- imports -->\n", "<!-- /imports -->"
GROUND = "ground floor"
Arrows = dict[str, set[str]]


def room(module: str) -> str:
    """`schedulers` for what lies in that folder, `sd_ext` for the package itself, else the ground floor."""
    first = module.split(".")[1] if "." in module else "sd_ext"
    return first if first == "sd_ext" or (source.ROOT / "sd_ext" / first).is_dir() else GROUND


def arrows_between_rooms() -> Arrows:
    """Room -> the other rooms that it imports. The package itself, which is asked for its version only, is left out."""
    arrows: Arrows = {}
    for module, others in source.graph().items():
        arrows.setdefault(room(module), set()).update(room(other) for other in others)
    return {name: others - {name, "sd_ext"} for name, others in arrows.items()}


def floors(arrows: Arrows) -> dict[str, int]:
    """Room -> its floor, 0 at the bottom.

    Raises:
        ValueError: rooms import each other in a circle.
    """

    def floor(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join([*above, name])}")
        return 1 + max((floor(other, (*above, name)) for other in arrows[name]), default=-1)

    return {name: floor(name) for name in arrows}


def table(arrows: Arrows) -> str:
    """The arrows in words, top floor first, as Markdown."""
    level = floors(arrows)
    lines = ["| floor | room | imports |", "| --- | --- | --- |"]
    for name in sorted(arrows, key=lambda n: (-level[n], n)):
        lines.append(f"| {level[name]} | {name} | {', '.join(sorted(arrows[name])) or 'nothing'} |")
    return "\n".join(lines) + "\n"


def numbers() -> dict[str, Any]:
    """Files, lines and arrows, of every room and of the whole."""
    graph = source.graph()
    rooms: dict[str, Any] = {}
    for path in source.sources():
        module, length = source.module_of(path), len(path.read_text("utf-8").splitlines())
        here = rooms.setdefault(room(module), {"files": 0, "lines": 0, "arrows_inside": 0, "longest": ("", 0)})
        here["files"] += 1
        here["lines"] += length
        here["arrows_inside"] += sum(room(other) == room(module) for other in graph[module])
        if length > here["longest"][1]:
            here["longest"] = (path.relative_to(source.ROOT).as_posix(), length)
    return {
        "rooms": dict(sorted(rooms.items(), key=lambda pair: -pair[1]["lines"])),
        "files": sum(each["files"] for each in rooms.values()),
        "lines": sum(each["lines"] for each in rooms.values()),
        "arrows_between_rooms": sum(len(others) for others in arrows_between_rooms().values()),
        "in_circles": in_circles(graph),
    }


def in_circles(graph: Arrows) -> list[str]:
    """The modules that lead back to themselves."""

    def reached(module: str) -> set[str]:
        seen, waiting = set[str](), [*graph[module]]
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting += graph[other]
        return seen

    return sorted(module for module in graph if module in reached(module))


def as_text(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = ["| room | files | lines | imports inside | longest file |", "| --- | --- | --- | --- | --- |"]
    for name, each in found["rooms"].items():
        path, length = each["longest"]
        lines.append(f"| {name} | {each['files']} | {each['lines']:,} | {each['arrows_inside']} | {path}, {length} |")
    lines += [
        "",
        f"{found['files']} files, {found['lines']:,} lines, {found['arrows_between_rooms']} arrows between rooms.",
    ]
    lines += [f"Modules in an import circle: {', '.join(found['in_circles']) or 'none'}."]
    return "\n".join(lines) + "\n"


def page(text: str, arrows: Arrows) -> str:
    """The page with its table made anew."""
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{table(arrows)}\n{MARKS[1]}{after}"


# ---- the picture -----------------------------------------------------------------------------------------------------


def without_shortcuts(arrows: Arrows) -> Arrows:
    """The arrows that no longer way along other arrows implies (the transitive reduction)."""

    @cache
    def reached(name: str) -> frozenset[str]:
        return frozenset(arrows[name]).union(*(reached(other) for other in arrows[name]))

    return {
        name: {other for other in others if not any(other in reached(third) for third in others - {other})}
        for name, others in arrows.items()
    }


def purpose(name: str) -> str:
    """The first sentence of a room's docstring, cut at a colon, semicolon or comma where it is long."""
    if name == GROUND:
        return ", ".join(sorted(path.stem for path in (ROOT / "sd_ext").glob("[!_]*.py")))
    path = ROOT / "sd_ext" / ("" if name == "sd_ext" else name) / "__init__.py"
    said = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
    said = said.split(". ")[0].removesuffix(".").removeprefix("sd_ext: ").replace("`", "")
    for mark in (":", ";", ","):
        said = said.split(mark)[0] if len(said) > 75 else said
    return said


def draw(arrows: Arrows, to: Path) -> None:
    """The house: a box for each room, floors from the bottom up, an arrow to each room below that it is built on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    level, shown = floors(arrows), without_shortcuts(arrows)
    top = max(level.values())
    figure = Figure(figsize=(8.5, 1.05 * (top + 1)), dpi=96, layout="constrained")
    axes = figure.subplots()
    places: dict[str, tuple[float, float]] = {}
    for floor in range(top + 1):
        names = sorted((name for name in arrows if level[name] == floor), key=lambda n: beside(n, shown, places))
        places |= {name: ((n + 1) / (len(names) + 1), floor) for n, name in enumerate(names)}
    boxes = {}
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.5", "fc": "#e7f0fb" if y else "#eaf6ea", "ec": "#33415c", "lw": 0.9}
        words = "\n".join(textwrap.wrap(purpose(name), 30 if y else 70))
        text = axes.text(x, y, f"{name}\n{words}", ha="center", va="center", fontsize=7.5, linespacing=1.3, bbox=box)
        boxes[name] = text.get_bbox_patch()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.5, top + 0.5))
    axes.set_axis_off()
    figure.draw_without_rendering()  # now the boxes have their sizes, and arrows can end at them
    for name, others in shown.items():
        for other in others:
            (x, y), (u, v) = places[name], places[other]
            style = {"arrowstyle": "-|>", "color": "#7d8597", "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
            style |= {"patchA": boxes[name], "patchB": boxes[other]}
            ends = (axes.transData.transform(places[each]) for each in (name, other))
            between = [box for each, box in boxes.items() if each not in (name, other)]
            style["connectionstyle"] = f"arc3,rad={bend(*ends, between)}"
            axes.annotate("", (u, v), (x, y), arrowprops=style, zorder=0)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    to.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(64).save(to, optimize=True)  # boxes, lines and words: few colours


def bend(start: Any, end: Any, boxes: list[Any]) -> float:
    """How much an arrow is bent so that it passes as few of the boxes as possible; of these the least.

    Args:
        start, end: in pixels.
        boxes: that it does not connect.
    """
    along = [i / 60 for i in range(61)]
    extents = [box.get_window_extent().padded(4) for box in boxes]

    def passed(rad: float) -> int:
        (x, y), (u, v) = start, end
        middle = (x + u) / 2 + rad * (v - y), (y + v) / 2 - rad * (u - x)  # as matplotlib's arc3 has it
        curve = [
            [(1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c for a, b, c in zip(start, middle, end, strict=True)]
            for t in along
        ]
        return sum(any(box.contains(*point) for point in curve) for box in extents)

    return min((sign * n / 20 for n in range(21) for sign in (1, -1)), key=lambda rad: (passed(rad), abs(rad)))


def beside(name: str, arrows: Arrows, places: dict[str, tuple[float, float]]) -> tuple[float, str]:
    """Where a room stands on its floor: above the middle of what it is built on, so that few arrows cross."""
    below = [places[other][0] for other in arrows[name]]
    return (sum(below) / len(below) if below else 0.5, name)


def main() -> None:
    if len(sys.argv) > 1:
        source.ROOT = Path(sys.argv[1]).resolve()
        print(as_text(numbers()))
        return
    arrows, found = arrows_between_rooms(), numbers()
    draw(arrows, PICTURE)
    PAGE.write_text(page(PAGE.read_text("utf-8"), arrows), "utf-8")
    write("architecture", found, as_text(found))


if __name__ == "__main__":
    main()
