"""A LoRA before the end of its run: the same files from the run itself, from its checkpoint, and from a longer run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sd_ext.errors import InputError
from sd_ext.lora import read_lora
from sd_ext.training.export import export
from sd_ext.training.run.checkpoint import checkpoints
from sd_ext.training.run.point import find_point, split

from .lora_cases import train

KINDS = {
    "words": {"text_encoder": True, "tokens": ("<toy>",), "prefix": "<toy>, ", "ema": 0.9, "alpha": 1.0},
    "schedule-free": {"optimizer": "schedulefree-adamw", "learning_rate": 0.02},
    "pissa": {"init": "pissa"},
    "dora": {"method": "dora", "targets": ("attention", "resnet")},
    "lokr": {"method": "lokr"},
}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["words", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "words")])
def test_a_checkpoint_exported_is_the_run_s_own_export(kind, bases, picture_folder, tmp_path):
    """And what the run is at its end, exported from its last checkpoint, is its result."""
    if kind == "schedule-free":
        pytest.importorskip("schedulefree")
    shape, settings = ("sdxl" if kind == "words" else "sd15"), {"data": str(picture_folder), **KINDS[kind]}
    run = train(
        bases[shape], tmp_path / "run", **settings, steps=3, save_every=2, log_every=1, checkpoint_every=1, keep=1
    )
    own = tmp_path / "run" / "exports" / "step-00000002"
    assert [path.name for path in own.parent.iterdir()] == [own.name]
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000002", "step-00000003"]
    made, _ = export(f"{tmp_path / 'run'}@2", tmp_path / "exported")
    assert files(made) == files(own)
    assert json.loads((made / "training.json").read_text())["steps"] == 2
    last, _ = export(str(tmp_path / "run"))
    assert last == tmp_path / "run" / "exports" / "step-00000003"
    result = files(run.folder)
    assert files(last) == result
    before = read_lora(made / run.kohya.name).adapters
    assert any(not torch.equal(a.product(), before[n].product()) for n, a in read_lora(run.kohya).adapters.items())
    averaged = kind in ("words", "schedule-free")
    if averaged:
        plain, _ = export(f"{tmp_path / 'run'}@2", ema=False)
        assert plain.name == "step-00000002-without-ema"
        one, other = (load_file(folder / run.kohya.name) for folder in (plain, made))
        assert any(not torch.equal(one[key], other[key]) for key in one)
    else:
        with pytest.raises(InputError, match="keeps no averaged weights; leave out --ema"):
            export(f"{tmp_path / 'run'}@2", tmp_path / "no", ema=True)
    raw = tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors"
    with pytest.raises(InputError, match=r"it is a file of a training run.*sd-ext train export RUN@STEP"):
        read_lora(raw)


def test_what_cannot_be_exported_is_said(bases, lora_run, picture_folder, tmp_path):
    run = lora_run().folder.parent
    with pytest.raises(InputError, match=r"has no checkpoint of step 7, but of 3; which are kept is said by"):
        export(f"{run}@7")
    with pytest.raises(InputError, match="nothing is no folder of a run"):
        export(str(tmp_path / "nothing"))
    strange = tmp_path / "strange@5"
    strange.mkdir()
    assert split(str(strange)) == (strange, None)
    assert split(f"{strange}@7") == (strange, 7)
    assert find_point(f"{run}@3").step == find_point(str(run)).step == 3
    (strange / "run.json").write_text('{"run": "autoencoder"}')
    (strange / "checkpoints").symlink_to(run / "checkpoints")
    with pytest.raises(InputError, match="is a run of a autoencoder; only those of LoRAs"):
        export(str(strange))
