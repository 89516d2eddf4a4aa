"""Trains a Stable Diffusion model from scratch, end to end: pictures, autoencoder, text encoder, U-Net, pipeline.

Each stage writes a folder of the output that appears when the stage is complete. Running the same command again skips
complete stages and resumes an interrupted one. Each training stage runs in a process of its own, so that its memory is
free for the next one.

    OUT/data  OUT/autoencoder  OUT/text_encoder  OUT/text_to_image  OUT/pipeline
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sd_ext import whole
from sd_ext.declared import check
from sd_ext.errors import InputError, TrainingError
from sd_ext.reading import read_toml
from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig, TextToImageConfig
from sd_ext.training.settings.command import describe, parse
from sd_ext.training.settings.config import Config

RECIPES = Path(__file__).parent / "recipes"
GUIDANCE = 1.5  # the scale at which the embedded model measures best, see benchmarks/bars.py
TRAINED: dict[str, type[Config]] = {
    "autoencoder": AutoencoderConfig,
    "text_encoder": TextEncoderConfig,
    "text_to_image": TextToImageConfig,
}


@dataclass(frozen=True)
class Stage:
    """A stage that trains one model.

    Args:
        name: the key in `TRAINED`.
        result: the folder of the trained model; if it exists, the stage is complete.
        arguments: the command-line arguments of the stage's script.
    """

    name: str
    result: Path
    arguments: tuple[str, ...]

    @property
    def module(self) -> str:
        """The Python module of the stage's script."""
        return f"sd_ext.training.train_{self.name}"

    @property
    def status(self) -> str:
        """What the plan shows: "complete", "resumes" (it was interrupted) or "to do"."""
        if self.result.exists():
            return "complete"
        return "resumes" if (self.result.parent / "run.json").exists() else "to do"


def find_recipe(name: str) -> Path:
    """The path of a recipe file.

    Args:
        name: the name of a recipe in this package ("cpu", "gpu"), or the path of a TOML file.

    Raises:
        InputError: there is no such recipe; lists those in this package.
    """
    ours = {p.stem: p for p in RECIPES.glob("*.toml") if not p.stem.startswith("lora_")}
    if name in ours:
        return ours[name]
    if Path(name).is_file():
        return Path(name)
    raise InputError(f"no recipe {name!r}: give {' or '.join(sorted(ours))}, or the path of a TOML file")


@dataclass
class DataSection:
    """The checked fields of a recipe's table [data]."""

    folder: str = ""


@dataclass
class Sections:
    """The checked tables of a recipe; the stages' own tables are checked by their scripts."""

    data: DataSection = field(default_factory=DataSection)


def stages(out: Path, recipe: Path, overrides: Sequence[str] = (), allow_import: bool = False) -> list[Stage]:
    """The stages that train a model, in order.

    Args:
        out: the folder of the run.
        recipe: the recipe file.
        overrides: settings as "stage.key=value".
        allow_import: see `run`.

    Raises:
        InputError: the recipe lacks a section, or an override is malformed.
    """
    sections = read_toml(recipe)
    if missing := [name for name in TRAINED if name not in sections]:
        raise InputError(f"{recipe} lacks the sections {', '.join(missing)}")
    if strange := [o for o in overrides if o.partition(".")[0] not in TRAINED or "=" not in o]:
        raise InputError(f"--override {strange[0]}: write stage.key=value, with stage one of {', '.join(TRAINED)}")
    check(sections, Sections, str(recipe))
    data = sections.get("data", {}).get("folder") or str(out / "data")
    made = []
    for name in TRAINED:
        arguments = ["--config", f"{recipe}#{name}", "--data", data, "--out", str(out / name)]
        if name == "text_to_image":
            arguments += ["--autoencoder", str(out / "autoencoder"), "--text-encoder", str(out / "text_encoder")]
        arguments += ["--allow-import"] if allow_import else []
        for override in overrides:
            stage, _, setting = override.partition(".")
            arguments += ["--override", setting] if stage == name else []
        made.append(Stage(name, out / name / "model", tuple(arguments)))
    return made


def plan(out: Path, recipe: Path, overrides: Sequence[str] = (), allow_import: bool = False) -> str:
    """A text that describes each stage: its status and all its settings. Every setting is checked on the way."""
    lines = [f"data: {'complete' if (out / 'data' / 'metadata.jsonl').exists() else 'to do'}"]
    for stage in stages(out, recipe, overrides, allow_import):
        config, _ = parse(TRAINED[stage.name], stage.arguments, "")
        lines += ["", f"{stage.name}: {stage.status}", describe(config)]
    return "\n".join([*lines, "", f"pipeline: {'complete' if (out / 'pipeline').exists() else 'to do'}"])


def run_stage(stage: Stage) -> None:
    """Run a stage's script as a process and wait for its end.

    Raises:
        TrainingError: the script failed; it has printed the reason.
        KeyboardInterrupt: the script was interrupted and has saved a checkpoint.
    """
    process = subprocess.Popen([sys.executable, "-m", stage.module, *stage.arguments])
    try:
        code = process.wait()
    except BaseException:  # Ctrl-C reaches the stage too; SIGTERM does not. Let it save, then go.
        process.terminate() if process.poll() is None else None
        process.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise TrainingError(f"the stage {stage.name} stopped (exit code {code}); the same command resumes it")


def run(
    out: str, recipe: str = "cpu", overrides: Sequence[str] = (), dry_run: bool = False, allow_import: bool = False
) -> Path:
    """Train a model from scratch, or continue an interrupted run.

    Args:
        out: the folder of the run.
        recipe: "cpu", "gpu", or the path of a TOML file.
        overrides: settings as "stage.key=value".
        dry_run: print the plan and stop.
        allow_import: allow the recipe to name an optimizer of any package. Importing a package runs its code.

    Returns:
        The folder of the pipeline.

    Raises:
        InputError: a wrong recipe or setting, or `out` holds something else.
        TrainingError: a stage failed; running the same command again resumes it.
        KeyboardInterrupt: a stage was interrupted and has saved a checkpoint.
    """
    folder, path = Path(out), find_recipe(recipe)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{out} is a file; choose a folder")
    text = plan(folder, path, overrides, allow_import)  # also checks every setting before the first stage begins
    pipeline = folder / "pipeline"
    if dry_run:
        print(text)
        return pipeline
    known, there = {"data", "pipeline", *TRAINED}, folder.iterdir() if folder.exists() else ()
    if strange := [p.name for p in there if p.is_dir() and p.name not in known and not whole.is_temporary(p.name)]:
        raise InputError(f"{out} holds something else ({', '.join(sorted(strange)[:3])}); choose another folder")
    if pipeline.exists():
        return pipeline
    if "folder" not in read_toml(path).get("data", {}) and not (folder / "data" / "metadata.jsonl").exists():
        from sd_ext.training.sets.glyphs import write_imagefolder

        print(f"data: {write_imagefolder(folder / 'data')} pictures")
    parts = stages(folder, path, overrides, allow_import)
    for stage in parts:
        if stage.status != "complete":
            run_stage(stage)
    finish(folder, path.stem, parts[-1].result, pipeline)
    return pipeline


def finish(out: Path, recipe: str, trained: Path, pipeline: Path) -> None:
    """Save the trained pipeline in float16, with a model card if it was trained on the set made here.

    Args:
        out: the folder of the run.
        recipe: the recipe's name, for the card.
        trained: the folder of the trained pipeline.
        pipeline: the folder to write.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from sd_ext.training.model.pipeline import folder_size, save_pipeline
    from sd_ext.training.sets.card import write_card

    def add_card(new: Path) -> None:
        if (out / "data").exists():  # the card describes the glyph set, so models of other data get none
            write_card(new, pipe, out, recipe, repr(str(pipeline)), GUIDANCE)

    pipe = StableDiffusionPipeline.from_pretrained(trained, local_files_only=True)
    save_pipeline(pipe, pipeline, torch.float16, add_card)
    print(f"pipeline: {pipeline}, {folder_size(pipeline) / 1e6:.1f} MB")
