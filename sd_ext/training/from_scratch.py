"""Trains a Stable Diffusion model from scratch, end to end: pictures, autoencoder, text encoder, U-Net, pipeline.

Each stage writes a folder of the output that appears when the stage is complete. Running the same command again skips
complete stages and resumes an interrupted one. Each training stage runs in a process of its own, so that its memory is
free for the next one.

    OUT/packages  OUT/data  OUT/autoencoder  OUT/decoder  OUT/text_encoder  OUT/text_to_image  OUT/pipeline

A recipe may leave out the stage "decoder", which trains the autoencoder's decoder further.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sd_ext import whole
from sd_ext.declared import make
from sd_ext.errors import InputError, TrainingError, UnknownNameError
from sd_ext.reading import read_toml
from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig, TextToImageConfig
from sd_ext.training.settings.command import describe, parse
from sd_ext.training.settings.config import Config

RECIPES = Path(__file__).parent / "recipes"
GUIDANCE = 5.0  # of 3, 4, 5 and 7 the scale at which the judge of benchmarks/bars.py knows most things
TRAINED: dict[str, type[Config]] = {
    "autoencoder": AutoencoderConfig,
    "decoder": AutoencoderConfig,
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
        return f"sd_ext.training.train_{'autoencoder' if self.name == 'decoder' else self.name}"

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
    ours = {p.stem: p for p in RECIPES.glob("*.toml") if "_" not in p.stem}
    if name in ours:
        return ours[name]
    if Path(name).is_file():
        return Path(name)
    raise InputError(f"no recipe {name!r}: give {' or '.join(sorted(ours))}, or the path of a TOML file")


@dataclass(frozen=True)
class DataSection:
    """A recipe's table [data].

    Args:
        folder: of captioned pictures to train on. If empty, scenes are drawn from the sets of drawings:
        pictures, size, seed: how many, their height and width, and which; see `write_drawings`.
    """

    folder: str = ""
    pictures: int = 100_000
    size: int = 64
    seed: int = 0


def read_data(recipe: Path) -> DataSection:
    """The table [data] of a recipe.

    Raises:
        InputError: it has an unknown key, or a value of a wrong type.
    """
    table = read_toml(recipe).get("data", {})
    data = make(DataSection, table, str(recipe), "data")
    known = [field.name for field in fields(DataSection)]
    if strange := sorted(set(table) - set(known)):
        raise UnknownNameError(f"setting in {recipe}, [data]:", strange[0], known)
    return data


def draw_data(folder: Path, data: DataSection, packages: Path, get: bool) -> None:
    """Draw the pictures to train on from the sets of drawings.

    Args:
        folder: the folder to write.
        data: how many pictures, and which.
        packages: folder of the npm packages that hold the drawings.
        get: fetch those that it lacks by `npm pack`.

    Raises:
        InputError: packages are missing, or not what they should be; the disk is too small.
    """
    from sd_ext.training.sets.drawings.folder import write_drawings
    from sd_ext.training.sets.drawings.packages import declared, fetch, usable

    if get and (got := fetch(packages, [*usable(), declared()[1]])):
        print(f"fetched {', '.join(got)} into {packages}")
    if not packages.is_dir():
        raise InputError(
            "there are no drawings to train on: give --fetch, which gets their npm packages (25 MB), or --packages DIR "
            "with them, or name a folder of captioned pictures in the recipe's [data]"
        )
    for line in write_drawings(folder, packages, data.pictures, data.size, data.seed):
        print(f"data: {line}")


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
    if missing := [name for name in TRAINED if name not in sections and name != "decoder"]:
        raise InputError(f"{recipe} lacks the sections {', '.join(missing)}")
    if strange := [o for o in overrides if o.partition(".")[0] not in TRAINED or "=" not in o]:
        raise InputError(f"--override {strange[0]}: write stage.key=value, with stage one of {', '.join(TRAINED)}")
    data = read_data(recipe).folder or str(out / "data")
    made = []
    names = [name for name in TRAINED if name in sections]
    for name in names:
        arguments = ["--config", f"{recipe}#{name}", "--data", data, "--out", str(out / name)]
        if name == "decoder":
            arguments += ["--model", str(out / "autoencoder")]
        if name == "text_to_image":
            autoencoder = "decoder" if "decoder" in names else "autoencoder"
            arguments += ["--autoencoder", str(out / autoencoder), "--text-encoder", str(out / "text_encoder")]
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
    out: str,
    recipe: str = "cpu",
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    allow_import: bool = False,
    packages: str | None = None,
    fetch: bool = False,
) -> Path:
    """Train a model from scratch, or continue an interrupted run.

    Args:
        out: the folder of the run.
        recipe: "cpu", "gpu", or the path of a TOML file.
        overrides: settings as "stage.key=value".
        dry_run: print the plan and stop.
        allow_import: allow the recipe to name an optimizer of any package. Importing a package runs its code.
        packages: folder of the npm packages that the pictures are drawn from; None is "packages" in `out`.
        fetch: get those that it lacks by `npm pack`.

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
    known, there = {"data", "packages", "pipeline", *TRAINED}, folder.iterdir() if folder.exists() else ()
    if strange := [p.name for p in there if p.is_dir() and p.name not in known and not whole.is_temporary(p.name)]:
        raise InputError(f"{out} holds something else ({', '.join(sorted(strange)[:3])}); choose another folder")
    if pipeline.exists():
        return pipeline
    if not (data := read_data(path)).folder and not (folder / "data" / "metadata.jsonl").exists():
        draw_data(folder / "data", data, Path(packages) if packages else folder / "packages", fetch)
    parts = stages(folder, path, overrides, allow_import)
    for stage in parts:
        if stage.status != "complete":
            run_stage(stage)
    finish(folder, path.stem, parts[-1].result, pipeline)
    return pipeline


def finish(out: Path, recipe: str, trained: Path, pipeline: Path) -> None:
    """Save the trained pipeline in float16, with a model card and `words.json` if it was trained on the set drawn here.

    Args:
        out: the folder of the run.
        recipe: the recipe's name, for the card.
        trained: the folder of the trained pipeline.
        pipeline: the folder to write.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from sd_ext.training.model.pipeline import folder_size, save_pipeline
    from sd_ext.training.sets.drawings.card import write_card
    from sd_ext.training.sets.drawings.words import write_words

    def add_card_and_words(new: Path) -> None:
        if (out / "data" / "drawings").exists():  # models of other data get neither card nor words
            write_card(new, pipe, out, recipe, repr(str(pipeline)), GUIDANCE)
            write_words(new, out / "data", GUIDANCE)

    pipe = StableDiffusionPipeline.from_pretrained(trained, local_files_only=True)
    save_pipeline(pipe, pipeline, torch.float16, add_card_and_words)
    print(f"pipeline: {pipeline}, {folder_size(pipeline) / 1e6:.1f} MB")
