"""The model card of a pipeline trained on drawings: `card.md` with the run's own numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sd_ext.plain_files import MIB, read_bytes
from sd_ext.reading import read_json, read_json_lines
from sd_ext.training.model.pipeline import folder_size
from sd_ext.training.sets.drawings.book import read_book
from sd_ext.training.sets.drawings.held_out import STYLE, TRAIN

TEMPLATE = Path(__file__).parent / "card.md"
ROWS = {"steps": "steps", "batch_size": "pictures a step", "learning_rate": "learning rate", "channels": "channels"}


def millions(model: Any) -> float:
    """The number of a model's parameters, in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def recipe_table(runs: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of settings: one row for each setting in `ROWS`, one column for each run.

    Args:
        runs: name of each stage -> its `run.json`.
    """

    def text(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    rows = [("", [stage.replace("_", " ") for stage in runs]), ("---", ["---"] * len(runs))]
    rows += [(shown, [text(run.get(name, "")) for run in runs.values()]) for name, shown in ROWS.items()]
    return "\n".join(f"| {shown} | {' | '.join(values)} |" for shown, values in rows)


def attribution_of(data: Path) -> str:
    """What the set's own ATTRIBUTION.md says, without its title."""
    text = read_bytes(data / "ATTRIBUTION.md", MIB, data).decode()
    return text.partition("\n\n")[2].strip()


def write_card(new: Path, pipe: Any, out: Path, recipe: str, where: str, guidance: float) -> None:
    """Write `README.md` into a new folder for a pipeline trained in `out`.

    Args:
        new: the folder of the saved pipeline.
        pipe: the same pipeline, loaded.
        out: the output folder of `sd-ext train from-scratch`, with the drawn set in its folder "data".
        recipe: the recipe's name.
        where: the Python expression that the card's example passes to `from_pretrained`.
        guidance: the guidance scale that the card recommends.
    """
    stages = ("autoencoder", "decoder", "text_encoder", "text_to_image")
    runs = {
        stage: read_json(out / stage / "run.json", dict[str, Any])
        for stage in stages
        if (out / stage / "run.json").exists()
    }
    splits = Counter(row["split"] for _, row in read_json_lines(out / "data" / "metadata.jsonl", dict[str, Any]))
    trained = [drawing for drawing in read_book(out / "data").drawings if drawing.split != STYLE]
    latent = (pipe.vae.config.latent_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    parts = {name: millions(getattr(pipe, name)) for name in ("vae", "text_encoder", "unet")}
    card = TEMPLATE.read_text(encoding="utf-8").format(
        **parts,
        millions=sum(parts.values()),
        megabytes=folder_size(new) / 1e6,
        pixels=pipe.vae.config.sample_size,
        latent=" x ".join(map(str, latent)),
        concepts=len({drawing.concept for drawing in trained}),
        drawings=len(trained),
        styles=", ".join([*sorted({drawing.style for drawing in trained}), "silhouette", "pixel art"]),
        pictures=splits.total(),
        train=splits[TRAIN],
        held_out=", ".join(f"{count:,} {split}" for split, count in splits.most_common() if split != TRAIN),
        attribution=attribution_of(out / "data"),
        recipe=recipe,
        recipe_table=recipe_table(runs),
        prediction=pipe.scheduler.config.prediction_type,
        schedule=pipe.scheduler.config.beta_schedule,
        where=where,
        guidance=guidance,
        strength=f"{guidance:g}",  # in code, where a formatter would take a format for Python
    )
    (new / "README.md").write_text(card, encoding="utf-8")
