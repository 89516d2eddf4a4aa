"""Another form of storage is another `Model`: those who use models need not know."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_ext.lora import apply_lora, extract, merge_into, resize
from sd_ext.models import Folder, Model, StoredTensor
from sd_ext.models.pipeline import load_pipeline
from sd_ext.models.weights import stored_tensors
from tests.lora import adapters
from tests.lora import models as tiny


class OneFile(Model):
    """Everything in one safetensors file: PART.NAME for the tensors, the configs in its header."""

    def __init__(self, path):
        super().__init__(str(path))
        self.path = path
        self.stored = list(stored_tensors([path]))

    parts = property(lambda self: sorted({stored.key.partition(".")[0] for stored in self.stored}))
    index = {"_class_name": "StableDiffusionPipeline"}  # noqa: RUF012

    def check(self, parts=None): ...

    def check_weights(self, part): ...

    def config(self, part):
        return json.loads(self.path.with_suffix(".json").read_text())[part]

    def where(self, part):
        return f"{self.path}: {part}"

    def load(self, part, dtype=None):
        made = self.without_weights(part)
        made.load_state_dict({name: stored.read() for name, stored in self.tensors(part).items()})
        return made

    def load_as(self, kind, part, dtype=None):
        return self.load(part, dtype)

    def pipeline(self, **options):
        from types import SimpleNamespace

        return SimpleNamespace(to=lambda device: {part: self.load(part) for part in self.parts})

    def tensors(self, part):
        return {s.key.removeprefix(f"{part}."): s for s in self.stored if s.key.startswith(f"{part}.")}

    def contents(self, part):
        yield self.path.name, hashlib.sha256(self.path.read_bytes()).digest()

    def check_apart(self, out): ...

    def write_changed(self, new, parts, change):
        stored = {(part, name): tensor for part in parts for name, tensor in self.tensors(part).items()}
        changed = {f"{part}.{name}": tensor for (part, name), tensor in change(stored).items()}
        save_file({**load_file(self.path), **changed}, new / self.path.name)


@pytest.fixture
def base(tmp_path):
    made = tiny.tiny_models("sd15")
    path = tmp_path / "base.safetensors"
    save_file({f"{part}.{name}": w for part, model in made.items() for name, w in model.state_dict().items()}, path)
    configs = {part: json.loads(model.to_json_string() if part == "unet" else model.config.to_json_string())
               for part, model in made.items()}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(configs))
    return OneFile(path)


def test_it_serves_loras_and_pipelines_alike(base, tmp_path):
    assert base.family == "sd15"
    assert len(base.digest("unet")) == 64
    plain = load_pipeline(base, torch.device("cpu"), torch.float32)
    expected = tiny.outputs(tiny.tiny_models("sd15"))
    for part, output in tiny.outputs(plain).items():
        torch.testing.assert_close(output, expected[part])
    from sd_ext.lora import from_peft

    lora = from_peft(adapters.trained("sd15"), base="sd15")
    merge_into(base, [(lora, 0.5)], tmp_path / "out")
    merged = OneFile(tmp_path / "out" / "base.safetensors")
    found = extract(base, merged, energy=1.0)
    assert found.adapters.keys() == lora.adapters.keys()
    apply_lora(plain, lora, 0.5)
    for name, weight in plain["unet"].state_dict().items():
        torch.testing.assert_close(merged.tensors("unet")[name].read(), weight, rtol=0, atol=0)
    assert resize(lora, rank=1, base=base).plain


def test_it_lies_beside_folders(base, tmp_path):
    made = tiny.tiny_models("sd15")
    for part, model in made.items():
        model.save_pretrained(tmp_path / "folder" / part)
    folder = Folder(tmp_path / "folder")
    ours, theirs = base.tensors("unet"), folder.tensors("unet")
    assert {name: stored.shape for name, stored in ours.items()} == {n: s.shape for n, s in theirs.items()}
    assert all(isinstance(stored, StoredTensor) for stored in ours.values())
