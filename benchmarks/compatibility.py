"""Which Diffusers pipelines run with which samplers? Every pipeline x every sampler, in tiny.

    python benchmarks/compatibility.py [--pipelines Img2Img ...] [--samplers "dpm++ 2m" ...] [--workers 1] [--fresh]
    python benchmarks/compatibility.py --two-fields
    python benchmarks/compatibility.py --newer
    python benchmarks/compatibility.py --again auto "auto low guidance"
    python benchmarks/compatibility.py --add auto "auto low guidance"

A cell passes if the result is finite, the network was evaluated as often as was asked for, and the same seed gives the
same result again. Where the timesteps were fractional and the cell fails, it is tried again with whole ones. Cells that
are done are kept beside the results, so that an interrupted run goes on where it was, and a new sampler costs its own
cells only; --fresh starts over. Writes results/compatibility.json and docs/compatibility.md. Samplers of two fields
have a part of their own, which --two-fields runs alone. --newer tries the samplers that the results lack in a selection
of pipelines, and the page says so, until every pair is run again. --again is for samplers that have changed since: what
the results say of them in that selection is measured anew, and the page is made again, by what samplers are today.
--add does so in every pipeline, for the samplers that are named and for all that the results lack: after it the table
is whole.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _report import RESULTS, machine
from rich.progress import track

import sd_ext

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.zoo import BROKEN, ZOO  # noqa: E402
from tests.zoo.cell import STEPS, Bench, Problem  # noqa: E402
from tests.zoo.reasons import OTHER_OUTPUT, REASONS, UNSEEDED, WITNESS, explain  # noqa: E402

PAGE = ROOT / "docs" / "compatibility.md"
DONE = RESULTS / "compatibility.cells.tmp"
"""JSON: pipeline, to sampler, to the problems of its tries; the pipeline's own scheduler is under ""."""
WHOLE = {"timestep_spacing": "leading"}

ONE_FIELD = [info for info in sd_ext.list_samplers() if not info.cls.weighs_unconditional]
"""The samplers that are tried in every pipeline."""
TWO_FIELDS = [info for info in sd_ext.list_samplers() if info.cls.weighs_unconditional]
"""Those with CFG++: what they find does not depend on which it is, and one is tried."""
TRIED = "dpm++ 2m cfg++"

Cell = list[Any]
"""The problem of each try, [kind, message] or None: one try, and where it failed on fractional timesteps another."""


# ---- the runs --------------------------------------------------------------------------------------------------------


def fractional(sampler: str, config: Any) -> bool:
    scheduler = sd_ext.make_scheduler(sampler, config)
    scheduler.set_timesteps(STEPS)
    return scheduler.timesteps.is_floating_point()


def as_json(problem: Problem | None) -> list[str] | None:
    return problem and [problem.kind, problem.message[:300]]


def try_cells(work: tuple[str, list[str]]) -> tuple[str, dict[str, Cell]]:
    """One pipeline with several samplers."""
    pipeline, samplers = work
    torch.set_num_threads(1)
    bench, done = Bench(ZOO[pipeline]), {}
    for sampler in samplers:
        problem = bench.sampler(sampler) if sampler else bench.own()
        tries = [as_json(problem)]
        if sampler and problem and fractional(sampler, bench.config):
            tries.append(as_json(bench.sampler(sampler, **WHOLE)))
        done[sampler] = tries
    return pipeline, done


def in_turn(work: Iterable[tuple[str, list[str]]], workers: int) -> Iterator[tuple[str, dict[str, Cell]]]:
    if workers == 1:
        yield from map(try_cells, work)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(try_cells, work)


def run(pipelines: list[str], samplers: list[str], workers: int, fresh: bool) -> dict[str, dict[str, Cell]]:
    """All cells asked for, the missing ones made now and kept in `DONE` as they come."""
    done = json.loads(DONE.read_text()) if DONE.exists() else {}
    for name in pipelines if fresh else ():
        done[name] = {s: cell for s, cell in done.get(name, {}).items() if s not in ["", *samplers]}
    missing = {name: [s for s in ["", *samplers] if s not in done.get(name, {})] for name in pipelines}
    work = [(name, some) for name, some in missing.items() if some]
    print(f"{sum(map(len, missing.values()))} cells to run in {len(work)} pipelines")
    for name, new in track(in_turn(work, workers), "pipelines", total=len(work), disable=not work):
        done.setdefault(name, {}).update(new)
        new_file = DONE.with_suffix(".new.tmp")
        new_file.write_text(json.dumps(done))
        new_file.replace(DONE)
    return {name: {s: done[name][s] for s in ["", *samplers]} for name in pipelines}


def chosen(names: Iterable[str], parts: list[str] | None) -> list[str]:
    """Names that contain one of the parts; a part that is a whole name stands for itself alone."""
    names = list(names)
    return [
        name
        for name in names
        if parts is None or any(part == name if part in names else part.lower() in name.lower() for part in parts)
    ]


def two_fields() -> dict[str, str]:
    """Pipeline, to what a sampler of two fields finds there: "both" halves, "one" prediction, or why it fails."""
    found = {}
    for name in track(ZOO, "two fields"):
        said = Bench(ZOO[name]).halves(TRIED)
        kind, _, message = said.partition(": ")
        why = OTHER_OUTPUT.get(name) or explain(name, Problem(kind, message))[0]
        found[name] = said if said in ("both", "one") else why or said
    return found


def selection() -> list[str]:
    """One pipeline of each family, without those that refuse every sampler, and all that have reasons of their own."""
    taking = [name for name in ZOO if not ZOO[name].refused]
    first = {ZOO[name].family: name for name in reversed(taking)}.values()
    special = {name for reason in REASONS for name in reason.pipelines}
    return [name for name in taking if name in first or name in special]


def newer(lacking: list[str], workers: int, fresh: bool) -> dict[str, Any]:
    """The samplers that the results lack in a selection of pipelines: which they are, and what each pipeline says."""
    cells_of, doubtful = run(selection(), lacking, workers, fresh), unproven()
    return {
        "samplers": lacking,
        "pipelines": {name: as_numbers(judge(name, cells, doubtful)) for name, cells in cells_of.items()},
    }


# ---- what they say ---------------------------------------------------------------------------------------------------

GROUPS = {
    "1 call": "one network call a step, no noise",
    "1 call, noise": "one call a step, noise drawn",
    "more calls": "several calls a step, no noise",
    "more, noise": "several calls a step, noise drawn",
    "consistency": "for consistency models",
    "flow": "for flow matching",
}


def group(info: sd_ext.SamplerInfo) -> str:
    if info.order is None:
        return "consistency"
    if info.cls.__name__.startswith("FlowMatch"):
        return "flow"
    return ("1 call" if info.calls == "1" else "more calls" if not info.stochastic else "more") + (
        ", noise" if info.stochastic else ""
    )


@dataclass
class Row:
    """What a pipeline's cells say.

    Args:
        own: the problem of the pipeline's own scheduler, "" if none.
        passed, whole: samplers that pass at once, and that pass with whole timesteps.
        cannot: reason, to samplers.
        failed: sampler, to a problem whose reason is not known.
    """

    own: str = ""
    passed: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    cannot: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, str] = field(default_factory=dict)


def unproven() -> set[tuple[str, str]]:
    """(pipeline, reason) where Diffusers' own scheduler does not fail, and the reason says nothing."""
    said = [(name, reason.text, reason.witness) for reason in REASONS for name in reason.pipelines]
    said += [(name, entry.refused, WITNESS) for name, entry in ZOO.items() if entry.refused]
    return {(name, text) for name, text, witness in said if Bench(ZOO[name]).diffusers(witness) is None}


def judge(pipeline: str, cells: dict[str, Cell], doubtful: set[tuple[str, str]]) -> Row:
    row = Row()
    for sampler, tries in cells.items():
        if tries[-1] is None and sampler:
            (row.passed if len(tries) == 1 else row.whole).append(sampler)
        elif tries[-1] is not None:
            text = explain(pipeline, Problem(*tries[-1]))[0] if sampler else ""
            if text and (pipeline, text) not in doubtful:
                row.cannot[text].append(sampler)
            elif sampler:
                row.failed[sampler] = ": ".join(tries[-1])
            else:
                row.own = ": ".join(tries[-1])
    return row


def count(rows: Iterable[Row]) -> dict[str, int]:
    rows = list(rows)
    return {
        "passed": sum(len(row.passed) for row in rows),
        "passed with whole timesteps": sum(len(row.whole) for row in rows),
        "cannot": sum(len(names) for row in rows for names in row.cannot.values()),
        "failed": sum(len(row.failed) for row in rows),
    }


def as_numbers(row: Row) -> dict[str, Any]:
    return {
        "own scheduler": row.own or "passed",
        **count([row]),
        "samplers passed with whole timesteps": row.whole,
        "samplers that cannot": dict(row.cannot),
        "samplers that fail": row.failed,
    }


def grouped(samplers: list[sd_ext.SamplerInfo]) -> dict[str, list[str]]:
    return {name: [info.name for info in samplers if group(info) == name] for name in GROUPS}


def in_numbers(rows: dict[str, Row]) -> dict[str, Any]:
    return {name: {"family": ZOO[name].family, **as_numbers(row)} for name, row in rows.items()}


def as_row(told: dict[str, Any], samplers: list[str]) -> Row:
    """What `as_numbers` wrote."""
    whole, failed = told["samplers passed with whole timesteps"], told["samplers that fail"]
    cannot = defaultdict(list, {reason: list(names) for reason, names in told["samplers that cannot"].items()})
    others = {*whole, *failed, *(name for names in cannot.values() for name in names)}
    own = "" if told["own scheduler"] == "passed" else told["own scheduler"]
    return Row(own, [name for name in samplers if name not in others], list(whole), cannot, dict(failed))


def again(
    outcome: dict[str, Any], changed: list[str], pipelines: list[str], workers: int, fresh: bool
) -> dict[str, Row]:
    """The rows of the results, with what samplers that have changed, or that they lack, do now in these pipelines."""
    samplers = [name for names in outcome["samplers"].values() for name in names]
    rows = {name: as_row(told, samplers) for name, told in outcome["pipelines"].items()}
    doubtful = unproven()
    for name, cells in run(pipelines, changed, workers, fresh).items():
        row, new = rows[name], judge(name, cells, doubtful)
        for names in (row.passed, row.whole, *row.cannot.values()):
            names[:] = [each for each in names if each not in changed]
        row.failed = {each: why for each, why in row.failed.items() if each not in changed} | new.failed
        row.passed += new.passed
        row.whole += new.whole
        for reason, names in new.cannot.items():
            row.cannot[reason] += names
        row.cannot = defaultdict(list, {reason: names for reason, names in row.cannot.items() if names})
    return rows


def as_result(rows: dict[str, Row]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "steps": STEPS,
        "totals": count(rows.values()),
        "samplers": grouped(ONE_FIELD),
        "pipelines": in_numbers(rows),
        "two fields": two_fields(),
        "run with no scheduler": {name: broken.reason for name, broken in BROKEN.items()},
    }


# ---- the page --------------------------------------------------------------------------------------------------------


def share(row: Row, names: list[str]) -> str:
    """How many of the samplers pass, with a star if some of them need whole timesteps."""
    passed = [name for name in names if name in row.passed or name in row.whole]
    text = "all" if len(passed) == len(names) else f"**{len(passed)} of {len(names)}**" if passed else "**none**"
    return text + ("\\*" if set(passed) & set(row.whole) else "")


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def of(names: list[str], every: list[str]) -> str:
    """A list of samplers, by what is missing of those that were tried where that is shorter."""
    others = [name for name in every if name not in names]
    if not others:
        return "every sampler"
    return f"every sampler but {quoted(others)}" if len(others) < 6 else quoted(names)


def table_of(rows: dict[str, Row], groups: dict[str, list[str]]) -> list[str]:
    heads = [f"{name} ({len(names)})" for name, names in groups.items()]
    lines = ["| | pipeline | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    before = ""
    for name in sorted(rows, key=lambda name: list(FAMILIES).index(ZOO[name].family)):
        family = ZOO[name].family
        shares = " | ".join(share(rows[name], names) for names in groups.values())
        lines.append(f"| {f'**{family}**' if family != before else ''} | {short(name)} | {shares} |")
        before = family
    return lines


FAMILIES = dict.fromkeys(entry.family for entry in ZOO.values())


def short(name: str) -> str:
    """`Class` (use)."""
    cls, _, use = name.partition(" (")
    return f"`{cls}`" + (f" ({use}" if use else "")


def around(rows: dict[str, Row], every: list[str]) -> list[str]:
    """Exceptions that lie in the pipeline, one paragraph each."""
    lines = []
    for reason in REASONS:
        met = [
            name
            for name in reason.pipelines
            if rows[name].cannot.get(reason.text) or (reason.whole and rows[name].whole)
        ]
        if not met:
            continue
        line = f"- {', '.join(map(short, met))}: {reason.text}. "
        whole = sorted({s for name in met for s in rows[name].whole}) if reason.whole else []
        cannot = {s: None for name in met for s in rows[name].cannot.get(reason.text, [])}
        if whole:
            line += f'With `timestep_spacing="leading"` it runs with {of(whole, every)}. '
        if cannot:
            line += f"It fails with {of(list(cannot), every)}. "
        lines.append(line + f"Diffusers' own `{reason.witness}` fails there too.")
    return lines


def part_of_two_fields(found: dict[str, str]) -> str:
    """The page's part on samplers of two fields."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, said in found.items():
        by_reason[said].append(name)
    both, one = by_reason.pop("both", []), by_reason.pop("one", [])
    lines = [
        f"{quoted(info.name for info in TWO_FIELDS)}, and every other sampler with a "
        "[`guidance_schedule`](guidance.md), also weigh one half of a guided prediction. All that is done besides is "
        "`sd_ext.attach(pipe)`.",
        "",
        f"They work in {len(both)} of the {len(found)} ways to use a pipeline: both halves are found. That it is the "
        "right one is tested for each way in which halves come (`tests/schedulers/test_two_fields.py`). The others:",
        "",
        f"- {', '.join(map(short, one))}: no guidance, unless the pipeline is told to use it; they run as the plain "
        "sampler, and say so, as they do in any pipeline that is called without guidance.",
        *(f"- {', '.join(map(short, names))}: {why}." for why, names in by_reason.items()),
        "",
        f"Tried with `{TRIED}`; the others call the network at the timesteps of their plain samplers, to which the "
        "exceptions above apply.",
    ]
    return "\n".join(lines)


def part_of_newer(found: dict[str, Any]) -> str:
    """The page's part on samplers that are not in its table yet."""
    samplers, pipelines = found["samplers"], found["pipelines"]
    passed, whole = (sum(row[k] for row in pipelines.values()) for k in ("passed", "passed with whole timesteps"))
    lines = [
        "## Samplers that are newer than the table",
        "",
        f"{quoted(samplers)} are not counted above. They were tried in {len(pipelines)} of the ways to use a pipeline: "
        f"one of each family that takes other samplers at all, and those that have [exceptions](#exceptions). Of these "
        f"{len(pipelines) * len(samplers)} pairs {passed + whole} pass, {whole} of them with "
        '`timestep_spacing="leading"`. The others:',
        "",
    ]
    for name, row in pipelines.items():
        for reason, some in row["samplers that cannot"].items():
            lines.append(f"- {short(name)} cannot with {among(some, samplers)}: {reason}.")
        lines += [f"- {short(name)} fails with `{some}`: {why}" for some, why in row["samplers that fail"].items()]
    return "\n".join([*lines, "", f"Tried: {', '.join(map(short, pipelines))}."])


def among(names: list[str], every: list[str]) -> str:
    """A list of samplers, by what is missing where that is shorter."""
    others = [name for name in every if name not in names]
    if not others:
        return "all of them"
    return f"all but {quoted(others)}" if len(others) < len(names) else quoted(names)


def with_part(text: str, name: str, part: str) -> str:
    """The page with the part between the marks of a name replaced."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    return re.sub(f"{marks[0]}.*{marks[1]}", lambda _: f"{marks[0]}\n\n{part}\n\n{marks[1]}", text, flags=re.DOTALL)


def page(rows: dict[str, Row], groups: dict[str, list[str]], two: dict[str, str]) -> str:
    totals = count(rows.values())
    passed = totals["passed"] + totals["passed with whole timesteps"]
    every = [name for names in groups.values() for name in names]
    refused = [name for name in rows if ZOO[name].refused]
    by_refusal: dict[str, list[str]] = defaultdict(list)
    for name in refused:
        by_refusal[ZOO[name].refused].append(name)
    closed = sum(len(names) for name in refused for names in rows[name].cannot.values())
    lines = [
        "# Which pipelines run with which samplers",
        "",
        f"Of {passed + totals['cannot'] + totals['failed']:,} pairs ({len(rows)} ways to use a Diffusers pipeline x "
        f"{len(every)} samplers) {passed:,} pass, {totals['passed with whole timesteps']} of them with "
        f'`timestep_spacing="leading"`; {closed} cannot, in {len(refused)} pipelines that take only Diffusers\' own '
        f"schedulers, and {totals['cannot'] - closed} cannot for [other reasons in the pipeline](#exceptions); "
        + (
            f"{totals['failed']} fail for [what is to be mended here](#exceptions)."
            if totals["failed"]
            else "none fails."
        ),
        "",
        "The pipelines are all of Diffusers' that are built on `UNet2DConditionModel` and its kin, with tiny random "
        f"networks ([tests/zoo](../tests/zoo)), {STEPS} steps each. A pair passes if nothing is raised, the result is "
        "finite, the network was evaluated exactly as often as was asked for, and the same seed gives the same result "
        "again. " + control(rows),
        "",
        "```python",
        "pipe.scheduler = sd_ext.make_scheduler(name, pipe.scheduler.config)  # all that was done to each pipeline",
        "```",
        "",
        "That a sampler runs does not say that it suits: consistency samplers (LCM, TCD) are for models distilled for "
        "them, flow samplers for flow models.",
        "",
        "Pipelines of flow models with transformers (SD3, Flux, AuraFlow, Lumina, Qwen-Image, LTX, Wan) run with all "
        "samplers of one field as well: on a model whose data are one picture every one finds it, in as many calls as "
        "asked ([test_flow_pipelines](../tests/schedulers/processes/test_flow_pipelines.py)). See "
        "[processes](processes.md).",
        "",
        "## Pipelines",
        "",
        "How many of a column's samplers pass; [below](#samplers) is which they are. \\* some of them with whole "
        "timesteps only, see [exceptions](#exceptions).",
        "",
        *table_of({name: row for name, row in rows.items() if name not in refused}, groups),
        "",
        "## Exceptions",
        "",
        "Some pipelines need timesteps that are whole numbers. Euler and its kin have fractional ones on their own "
        'grid, as in Diffusers, and whole ones with `make_scheduler(name, config, timestep_spacing="leading")`. '
        "Samplers that call the network inside a step, or at a noise level that they raised, have fractional ones on "
        "every grid, and so has `auto` with few calls, where its table is a fitted one.",
        "",
        *around(rows, every),
        *failures(rows, every),
        "",
        f"{' and '.join(map(short, UNSEEDED))} give no generator to `step`: with samplers that draw noise, call "
        "`torch.manual_seed` to get the same picture again, as with Diffusers' own schedulers.",
        "",
        "## Samplers of two fields",
        "",
        "<!-- two fields --><!-- /two fields -->",
        "",
        "<!-- newer --><!-- /newer -->",
        "",
        "## Only with Diffusers' own schedulers",
        "",
        f"No sampler of this package, and of Diffusers' own not `{WITNESS}` either:",
        "",
        *(f"- {', '.join(map(short, names))}: {text}." for text, names in by_refusal.items()),
        "",
        "## With no scheduler at all",
        "",
        f"Not counted above: with {installed()} these fail whatever the scheduler.",
        "",
        "| pipeline | reason |",
        "|---|---|",
        *(f"| {short(name)} | {broken.reason} |" for name, broken in BROKEN.items()),
        "",
        "## Samplers",
        "",
        "| column | | samplers |",
        "|---|---|---|",
        *(f"| {name} | {GROUPS[name]} | {quoted(names)} |" for name, names in groups.items()),
        "",
        "`python benchmarks/compatibility.py` runs every pair and writes this page and "
        "[the numbers](../benchmarks/results/compatibility.json); `tests/test_compatibility.py` runs a selection "
        "with every test run, and all of them with `-m slow`.",
    ]
    return with_part("\n".join(lines) + "\n", "two fields", part_of_two_fields(two))


def control(rows: dict[str, Row]) -> str:
    bad = [name for name, row in rows.items() if row.own]
    if not bad:
        return "With the scheduler it comes with, from Diffusers, each pipeline passes."
    return f"With its own scheduler, from Diffusers, each pipeline passes but {', '.join(map(short, bad))}."


def failures(rows: dict[str, Row], every: list[str]) -> list[str]:
    """Pairs whose reason does not lie in the pipeline, by pipeline and problem."""
    lines = []
    for name, row in rows.items():
        problems = defaultdict(list)
        for sampler, problem in row.failed.items():
            problems[problem].append(sampler)
        lines += [
            f"- {short(name)} fails with {of(names, every)}: the reason is not known. `{problem}`"
            for problem, names in problems.items()
        ]
    return ["", "To be mended here:", "", *lines] if lines else []


def installed() -> str:
    return " and ".join(f"{name} {importlib.metadata.version(name.lower())}" for name in ("Diffusers", "Transformers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pipelines", nargs="+", metavar="PART", help="those with one of these in their names")
    parser.add_argument(
        "--samplers", nargs="+", metavar="NAME", help="these, or those with one of these in their names"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--fresh", action="store_true", help="run cells again that are done")
    parser.add_argument("--two-fields", action="store_true", help="only the part on samplers of two fields")
    parser.add_argument("--newer", action="store_true", help="only samplers that the results lack, in few pipelines")
    parser.add_argument("--again", nargs="+", metavar="NAME", help="samplers that have changed, in few pipelines")
    parser.add_argument(
        "--add", nargs="*", metavar="NAME", help="these and all that the results lack, in every pipeline"
    )
    own = parser.parse_args()
    known = [info.name for info in ONE_FIELD]
    if own.two_fields or own.newer:
        torch.set_num_threads(1)
        outcome, text = json.loads((RESULTS / "compatibility.json").read_text()), PAGE.read_text()
        if own.two_fields:
            outcome["two fields"] = two_fields()
            text = with_part(text, "two fields", part_of_two_fields(outcome["two fields"]))
        if own.newer:
            there = {name for names in outcome["samplers"].values() for name in names}
            outcome["newer"] = newer([name for name in known if name not in there], own.workers, own.fresh)
            text = with_part(text, "newer", part_of_newer(outcome["newer"]))
        (RESULTS / "compatibility.json").write_text(json.dumps(outcome, indent=1) + "\n")
        PAGE.write_text(text)
        return
    if own.again or own.add is not None:
        torch.set_num_threads(1)
        outcome = json.loads((RESULTS / "compatibility.json").read_text())
        counted = {name for names in outcome["samplers"].values() for name in names}
        if own.again:
            named, pipelines, fresh = chosen([name for name in known if name in counted], own.again), selection(), True
        else:
            named = [name for name in known if name in own.add or name not in counted]
            pipelines, fresh = list(ZOO), own.fresh
            counted.update(named)
            outcome.pop("newer", None)
        rows = again(outcome, named, pipelines, own.workers, fresh)
        outcome |= {
            "totals": count(rows.values()),
            "samplers": grouped([info for info in ONE_FIELD if info.name in counted]),
            "pipelines": in_numbers(rows),
        }
        (RESULTS / "compatibility.json").write_text(json.dumps(outcome, indent=1) + "\n")
        text = page(rows, outcome["samplers"], outcome["two fields"])
        PAGE.write_text(with_part(text, "newer", part_of_newer(outcome["newer"])) if "newer" in outcome else text)
        return
    samplers, pipelines = chosen(known, own.samplers), chosen(ZOO, own.pipelines)
    torch.set_num_threads(1)
    cells_of = run(pipelines, samplers, own.workers, own.fresh)
    doubtful = unproven()
    rows = {name: judge(name, cells_of[name], doubtful) for name in pipelines}
    print(", ".join(f"{number} {name}" for name, number in count(rows.values()).items()))
    print("\n".join(failures(rows, samplers)))
    if samplers != known or pipelines != list(ZOO):
        print("A part of the table: the page and the results stay as they are.")
        return
    outcome = as_result(rows)
    (RESULTS / "compatibility.json").write_text(json.dumps(outcome, indent=1) + "\n")
    PAGE.write_text(page(rows, outcome["samplers"], outcome["two fields"]))


if __name__ == "__main__":
    main()
