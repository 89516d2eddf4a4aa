"""A finished LoRA run, as training leaves it, and a Hub that only takes notes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

WORD = "<brush>"
SETTINGS = {
    "learning_rate": 1e-4,
    "rank": 4,
    "targets": ["attention"],
    "flip": True,
    "min_snr": None,
    "data": "pictures_of_mine",
    "class_data": "/srv/pictures/class",
    "cache_dir": "~/cache",
    "noise": {"offset": 0.05},
}


FACTS = {
    "name": "brush",
    "base_model": "someone/base",
    "family": "sd15",
    "instance_prompt": f"a {WORD} picture",
    "prompts": ["a `red` apple | \"twice\"", f"{WORD} moon"],
    "seeds": [7, 8],
    "guidance": 1.5,
    "settings": SETTINGS,
    "steps": 200,
    "pictures": 20,
    "validation": [[0, 0.5], [100, 0.25], [200, 0.3]],
    "tokens": [WORD],
    "sd_ext": "0.1.0",
}  # fmt: skip


def tiny_lora(pipe: Any, kind: str = "lora") -> Any:
    """A LoRA, DoRA or LoKr of rank 4 and alpha 2 on copies of a pipeline's networks, as peft makes it."""
    import torch
    from peft import LoKrConfig, LoraConfig, inject_adapter_in_model

    from sd_ext.lora import from_peft

    models = {"unet": copy.deepcopy(pipe.unet), "text_encoder": copy.deepcopy(pipe.text_encoder)}
    for part, targets in {"unet": ["to_q", "to_v"], "text_encoder": ["q_proj"]}.items():
        if kind == "lokr":
            config = LoKrConfig(r=4, alpha=2, target_modules=targets)
        else:
            config = LoraConfig(r=4, lora_alpha=2, target_modules=targets, use_dora=kind == "dora")
        inject_adapter_in_model(config, models[part])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for model in models.values():
            for name, weight in model.named_parameters():
                if "lora_" in name or "lokr_" in name:
                    torch.nn.init.normal_(weight, std=0.3)
    return from_peft(models, base="sd15")


def write_run(model: Path, pipe: Any, facts: dict[str, Any]) -> None:
    """Everything that training writes to `OUT/model`, and what it leaves beside it."""
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo
    from safetensors.torch import save_file

    from sd_ext.lora import save_lora

    lora = tiny_lora(pipe)
    model.mkdir(parents=True)
    save_lora(lora, model / "pytorch_lora_weights.safetensors")
    save_lora(lora, model / "brush_kohya.safetensors", format="kohya")
    save_file({WORD: torch.full((2, 32), 0.1)}, model / "learned_embeds.safetensors")
    (model / "samples").mkdir()
    hidden = PngInfo()
    hidden.add_text("parameters", "model: /home/alice/models/base")
    for i, name in enumerate(["0000", "0001", "sheet"]):
        Image.new("RGB", (16, 16), (40 * i, 90, 200)).save(model / "samples" / f"{name}.png", pnginfo=hidden)
    Image.new("RGB", (32, 16), "white").save(model / "validation.png", pnginfo=hidden)
    (model / "training.json").write_text(json.dumps(facts))
    (model.parent / "checkpoints").mkdir()
    (model.parent / "checkpoints" / "optimizer.pt").write_bytes(b"optimizer")


@pytest.fixture(scope="session")
def finished(_tiny_components, tiny_pipeline_dir, tmp_path_factory) -> Path:
    """The output of a run on the tiny pipeline. Shared by all tests: copy it before changing a file."""
    out = tmp_path_factory.mktemp("finished") / "out"
    write_run(out / "model", SimpleNamespace(**_tiny_components), FACTS)
    return out


@pytest.fixture(autouse=True)
def _no_stranger(monkeypatch) -> None:
    """A process of its own takes seconds; `strangers` has one."""
    monkeypatch.setattr("sd_ext.hub.stranger.run_alone", lambda code, folder: (0, ""))


@pytest.fixture
def strangers(fresh, monkeypatch) -> list[str]:
    """What is read back in a process without this package; the list gets the code that was run there."""
    from sd_ext.hub.stranger import WITHOUT_US

    ran: list[str] = []

    def run_alone(code: str, folder: Path) -> tuple[int, str]:
        ran.append(code)
        done = fresh("import sys; sys.dont_write_bytecode = True\n" + WITHOUT_US + code, folder)  # as `-B` there
        return done.returncode, done.stderr

    monkeypatch.setattr("sd_ext.hub.stranger.run_alone", run_alone)
    return ran


@pytest.fixture
def out(finished, tmp_path) -> Path:
    """A run to spoil."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def edit(out) -> Callable[..., None]:
    """`edit(guidance=2)` changes training.json; None takes a fact out."""

    def edit(**changes: Any) -> None:
        file = out / "model" / "training.json"
        facts = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))

    return edit


@pytest.fixture
def lokr_out(out, tiny_pipeline) -> Path:
    """A run whose adapter is a LoKr, of which Diffusers has no file."""
    from sd_ext.lora import save_lora

    (out / "model" / "pytorch_lora_weights.safetensors").unlink()
    save_lora(tiny_lora(tiny_pipeline, "lokr"), out / "model" / "brush_kohya.safetensors", format="kohya")
    return out


@pytest.fixture
def dora_out(out, tiny_pipeline) -> Path:
    """A run whose adapter is a DoRA."""
    from sd_ext.lora import save_lora

    dora = tiny_lora(tiny_pipeline, "dora")
    save_lora(dora, out / "model" / "pytorch_lora_weights.safetensors")
    save_lora(dora, out / "model" / "brush_kohya.safetensors", format="kohya")
    return out


@pytest.fixture
def plain(out, edit) -> Path:
    """A run without pictures, prompts, new words, validation and settings."""
    model = out / "model"
    shutil.rmtree(model / "samples")
    (model / "validation.png").unlink()
    (model / "learned_embeds.safetensors").unlink()
    gone = ("instance_prompt", "prompts", "seeds", "guidance", "settings", "validation", "tokens", "sd_ext")
    edit(**dict.fromkeys(gone))
    return out


@dataclass
class FakeHub:
    """What was asked of the Hub, in order; `fails` maps a call's name to what it raises."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)
    public: bool = False
    sent: dict[str, bytes] = field(default_factory=dict)

    def note(self, call: str, **arguments: Any) -> None:
        self.calls.append((call, arguments))
        if call in self.fails:
            raise self.fails[call]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def hub(monkeypatch) -> FakeHub:
    import huggingface_hub

    fake = FakeHub()

    class Api:
        def __init__(self, **options):
            pass

        def whoami(self):
            return {"name": "alice", "orgs": []}

        def list_repo_files(self, repo_id):
            return []

        def create_repo(self, repo_id, **options):
            fake.note("create_repo", repo_id=repo_id, **options)

        def create_branch(self, repo_id, **options):
            fake.note("create_branch", repo_id=repo_id, **options)

        def repo_info(self, repo_id):
            fake.note("repo_info", repo_id=repo_id)
            return SimpleNamespace(private=not fake.public)

        def upload_folder(self, *, repo_id, folder_path, **options):
            folder = Path(folder_path)
            files = [p for p in folder.rglob("*") if p.is_file()]
            fake.sent = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
            fake.note("upload_folder", repo_id=repo_id, **options)
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/0")

    def download(repo_id, name, **options):
        fake.note("hf_hub_download", repo_id=repo_id, name=name, **options)
        raise FileNotFoundError(name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.ModelCard, "validate", lambda card: fake.note("validate"))
    return fake
