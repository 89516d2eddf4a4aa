"""The comparisons of the README and of the pages, drawn anew by the embedded model of this checkout.

    python benchmarks/site_pictures.py [--work runs/site]

Each sheet is what `sd-ext compare` writes: the commands are in `SHEETS`, `compare` stands in the README. The plot is of
the same numbers that stand under the pictures, over `PROMPTS`. What has been drawn is kept in the folder
and not drawn again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from _report import write
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SHEETS = {
    "compare": ["--prompt", "a red car", "--samplers", "euler,dpm++ 2m karras,auto,calibrated",
                "--steps", "4,5,6,8,10"],
    "calibration": ["--prompt", "a mushroom", "--samplers", "dpm++ 2m karras,unipc karras,auto,calibrated",
                    "--steps", "5,6,10", "--guidance", "7.5"],
    "which-noise": ["--prompt", "a red car", "--samplers", "dpm++ 2m karras,dpm++ 2m sde karras,euler a,er sde",
                    "--steps", "8,12,20,40"],
    "which-guidance": ["--prompt", "a red car", "--samplers", "euler,dpm++ 2m karras,auto", "--steps", "8",
                       "--guidance", "2,5,8,12"],
}  # fmt: skip
PROMPTS = ("a red car", "a cat", "a rocket at night", "three mushrooms")
MEASURED = ("euler", "heun karras", "dpm++ 2m", "dpm++ 2m karras", "unipc", "auto")
STEPS = (4, 6, 8, 12, 20)
LOOKS = {  # Okabe and Ito's colours, which the colour-blind tell apart; markers and lines for those who print
    "euler": ("#999999", "o", "--"),
    "heun karras": ("#CC79A7", "D", "--"),
    "dpm++ 2m": ("#56B4E9", "v", "--"),
    "dpm++ 2m karras": ("#0072B2", "^", "-"),
    "unipc": ("#E69F00", "P", "--"),
    "auto": ("#D55E00", "o", "-"),
}


def compare(asked: list[str], folder: Path) -> list[dict[str, Any]]:
    """What `sd-ext compare` says of each picture; the sheet is the only picture in the folder itself.

    Raises:
        subprocess.CalledProcessError: where it draws nothing.
    """
    for old in folder.glob("*.png"):
        old.unlink()
    command = [
        sys.executable,
        "-m",
        "sd_ext.cli",
        "compare",
        *asked,
        "--out",
        str(folder),
        "--json",
        "--quiet",
        "--yes",
    ]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in shown.splitlines()]


def packed(source: Path, target: Path) -> None:
    """A picture, as small as PNG makes it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(source).convert("RGB").save(target, optimize=True)
    print(f"wrote {target} ({target.stat().st_size / 1000:.0f} kB)", flush=True)


def measured(work: Path) -> dict[str, list[list[float]]]:
    """Sampler -> for each of `STEPS`, the distance of each of `PROMPTS`, in percent."""
    asked = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    asked += ["--samplers", ",".join(MEASURED), "--steps", ",".join(map(str, STEPS))]
    found: dict[str, list[list[float]]] = {name: [[] for _ in STEPS] for name in MEASURED}
    for cell in compare(asked, work / "measured"):
        found[cell["samplers"]][STEPS.index(int(cell["steps"]))].append(100 * cell["distance"])
    return found


def plot(found: dict[str, list[list[float]]], target: Path) -> None:
    """Geometric means over the prompts."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for name, rows in found.items():
        colour, marker, line = LOOKS[name]
        wide = 2.6 if name == "auto" else 1.6
        means = [float(np.exp(np.mean(np.log(row)))) for row in rows]
        axes.plot(STEPS, means, line, color=colour, marker=marker, linewidth=wide, markersize=6, label=name)
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="distance to the picture of 100 calls, %")
    axes.set_xticks(STEPS, [str(n) for n in STEPS])
    axes.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.grid(color="0.92")
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(target, dpi=110)
    plt.close(figure)
    packed(target, target)


def table(found: dict[str, list[list[float]]]) -> str:
    lines = [
        "# Distance to the picture of 100 calls, on the embedded model\n",
        f"Root mean square of all pixels, percent of the full range, geometric mean over {len(PROMPTS)} prompts",
        f"(lowest to highest): {', '.join(PROMPTS)}. Seed 0, the model's own guidance and size.\n",
        "| sampler | " + " | ".join(f"{n} calls" for n in STEPS) + " |",
        "|---" * (len(STEPS) + 1) + "|",
    ]
    for name, rows in found.items():
        cells = [f"{np.exp(np.mean(np.log(row))):.2g} ({min(row):.2g} to {max(row):.2g})" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/site"), help="a folder for what is drawn")
    parser.add_argument("--only", nargs="+", choices=[*SHEETS, "which-plot"], default=[*SHEETS, "which-plot"])
    options = parser.parse_args()
    for name in SHEETS.keys() & set(options.only):
        compare(SHEETS[name], options.work / name)
        (sheet,) = (options.work / name).glob("*.png")
        packed(sheet, IMAGES / f"{name}.png")
    if "which-plot" in options.only:
        found = measured(options.work)
        plot(found, IMAGES / "which-plot.png")
        write("which_sampler", {"prompts": PROMPTS, "steps": STEPS, "distance_percent": found}, table(found))


if __name__ == "__main__":
    main()
