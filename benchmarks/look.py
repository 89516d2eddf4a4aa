"""What does `sd-ext train look` take on many pictures, and does its page stay usable?

    python benchmarks/look.py [--data FOLDER] [--count 10000] [--browser chromium]

Without --data the script makes the pictures: JPEGs of several proportions with shapes on a gradient and a caption file
each; of a hundred one is there twice, one mirrored, one cut short, and one has no caption. The command is run in a
fresh process twice: as it is (all pictures are counted and compared, 300 are shown), and with all of them on the page.
Seconds are the processor's, of the whole process, with imports; memory is its peak (resident).

A browser that runs without a window (Chromium) then opens the page: seconds until it is loaded, until a search for one
word has shown what it found, and until the page is turned. Its picture is results/look.png.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import RESULTS, write
from lora_training import run
from PIL import Image, ImageDraw, ImageOps

SIDES = ((640, 640), (768, 512), (512, 768), (900, 600), (600, 800))
WORDS = ["red", "green", "blue", "round", "tall", "small", "old", "bright", "dark", "fox", "boat", "house", "cup"]
SEARCHED = "fox"
# Put before the end of a copy of the page: says how long things took, in place of the page.
PROBE = """<script>addEventListener('load', () => setTimeout(() => {
  const flush = () => document.body.offsetHeight, times = [performance.now()];
  at('find').value = 'WORD'; at('find').oninput(); flush(); times.push(performance.now());
  at('find').value = ''; at('find').oninput(); flush(); times.push(performance.now());
  at('on').click(); flush(); times.push(performance.now());
  document.documentElement.innerHTML = '<pre>' + JSON.stringify(times) + '</pre>';
}));</script></body>"""


def picture(random: np.random.Generator) -> Image.Image:
    """Shapes on a gradient with a little noise, so that JPEG has something to keep."""
    width, height = SIDES[random.integers(len(SIDES))]
    corners = random.integers(0, 255, (2, 2, 3), dtype=np.uint8)
    made = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(made)
    for _ in range(int(random.integers(4, 12))):
        (x, y), (w, h) = random.integers(0, min(width, height), 2), random.integers(20, 260, 2)
        box, colour = [int(x), int(y), int(x + w), int(y + h)], tuple(random.integers(0, 255, 3).tolist())
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=colour)
    grain = random.integers(-12, 13, (height // 4, width // 4, 1)).repeat(4, 0).repeat(4, 1)
    return Image.fromarray((np.asarray(made).astype(int) + grain).clip(0, 255).astype(np.uint8))


def make(folder: Path, count: int) -> None:
    """Write the pictures and captions."""
    folder.mkdir(parents=True)
    random, last = np.random.default_rng(0), Image.new("RGB", (640, 640))
    for number in range(count):
        path, kind = folder / f"{number:05d}.jpg", number % 100
        last = {50: lambda p: p, 51: ImageOps.mirror}.get(kind, lambda _: picture(random))(last)
        last.save(path, quality=88)
        if kind == 99:
            path.write_bytes(path.read_bytes()[:2000])
        if kind != 98:
            words = random.choice(WORDS, int(random.integers(3, 40)))
            path.with_suffix(".txt").write_text(f"a {' '.join(words)}")


def opened(browser: str, page: Path, work: Path) -> dict[str, float]:
    """Seconds that a browser takes for the page."""
    probed = work / "probed.html"
    text = page.read_text(encoding="utf-8")
    head, _, tail = text.rpartition("</body>")
    probed.write_text(head + PROBE.replace("WORD", SEARCHED) + tail, encoding="utf-8")
    said = headless(browser, work, "--dump-dom", probed.as_uri()).decode()
    found = re.search(r"<pre>(\[.*?\])</pre>", said)
    if not found:
        raise SystemExit(f"{browser} did not come to the end of {page}: {said[:300]}")
    loaded, searched, cleared, turned = (each / 1000 for each in json.loads(found[1]))
    return {"loaded": loaded, "search": searched - loaded, "all_again": cleared - searched, "turn": turned - cleared}


def processor() -> float:
    """Seconds of the processor that processes of this one have taken so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def headless(browser: str, work: Path, *arguments: str) -> bytes:
    """Run a browser without a window; what it prints."""
    own = f"--user-data-dir={work / 'browser'}"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", own)
    return subprocess.run([browser, *flags, *arguments], check=True, capture_output=True, timeout=600).stdout


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The numbers as Markdown."""
    lines = [
        "| | processor, s | pictures/s | peak memory, GB | page, MB | browser: loaded, s | search, s | turn, s |",
        "|---" * 8 + "|",
    ]
    for name, row in rows.items():
        seen = row.get("browser")
        told = [f"{seen[key]:.2f}" for key in ("loaded", "search", "turn")] if seen else [""] * 3
        lines.append(
            f"| {name} | {row['seconds']:.0f} | {row['per_second']:.0f} | {row['memory'] / 1e9:.2f} "
            f"| {row['size'] / 1e6:.1f} | {' | '.join(told)} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="pictures of your own")
    parser.add_argument("--count", type=int, default=10_000, help="pictures that are made")
    parser.add_argument("--resolution", default="512")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome") or "")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep pictures and pages there")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="look-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        data = given.data or work / f"pictures-{given.count}"
        if not data.exists():
            started = time.perf_counter()
            make(data, given.count)
            print(f"{given.count} pictures made in {time.perf_counter() - started:.0f} s", flush=True)
        count = sum(path.suffix.lower() not in (".txt", ".jsonl", ".csv") for path in data.rglob("*") if path.is_file())
        rows: dict[str, dict[str, Any]] = {}
        ways = {"300 shown": [], "all shown": ["--shown", str(count)]}
        for name, flags in ways.items():
            page = work / f"{name.replace(' ', '-')}.html"
            command = [sys.executable, "-m", "sd_ext.cli", "train", "look", str(data), "--resolution", given.resolution]
            before = processor()
            cost = run([*command, *flags, "--page", str(page)], work / f"{name.replace(' ', '-')}.log")
            seconds, size = processor() - before, page.stat().st_size
            rows[name] = {"seconds": seconds, "per_second": count / seconds, "memory": cost.memory, "size": size}
            if given.browser:
                rows[name]["browser"] = opened(given.browser, page, work)
            print(name, rows[name], flush=True)
        if given.browser:
            shot, page = RESULTS / "look.png", work / "300-shown.html"
            headless(given.browser, work, f"--screenshot={shot}", "--window-size=1360,1500", page.as_uri())
    finally:
        if not given.work:
            shutil.rmtree(work, ignore_errors=True)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    about = f"{count:,} pictures, {threads} threads of torch, resolution {given.resolution}."
    text = "\n".join(["# Looking at many pictures", "", about, "", *table(rows)])
    write("look", {"pictures": count, "resolution": given.resolution, "rows": rows}, text)


if __name__ == "__main__":
    main()
