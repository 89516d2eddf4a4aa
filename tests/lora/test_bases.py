"""A base may be a single file, a folder or a Hub id: every tool makes the same of each."""

from __future__ import annotations

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from sd_ext.lora import Adapter, Lora, extract, merge, merge_into, resize
from sd_ext.lora.plain import without_dora
from sd_ext.lora.weights import StoredWeights, is_matrix
from sd_ext.models import find_model
from sd_ext.models.written import write_model

EACH = 3  # modules of a part


def given_the_base(base: StoredWeights, seed: int) -> Lora:
    """Adapters of kinds that depend on the base's weight, of layers of every part, in turn."""
    draw, adapters = torch.Generator().manual_seed(seed), {}
    matrices = [(m, s) for m, s in base.shapes().items() if is_matrix(m, s) and "text_projection" not in m.path]
    parts = dict.fromkeys(module.part for module, _ in matrices)
    by_part = [[each for each in matrices if each[0].part == part] for part in parts]
    chosen = [each for listed in by_part for each in listed[:: len(listed) // EACH][:EACH]]
    for number, (module, shape) in enumerate(chosen):
        ones = [1] * (len(shape) - 2)
        down, up = (0.1 * torch.randn(s, generator=draw) for s in ((2, *shape[1:]), (shape[0], 2, *ones)))
        magnitude = base.weight(module).float().flatten(1).norm(dim=1) * 1.1
        if number % 2:
            adapters[module] = Adapter("lora", {"down": down, "up": up, "dora": magnitude.reshape(-1, 1, *ones)}, 2.0)
        else:
            adapters[module] = Adapter("oft", {"blocks": 0.2 * torch.randn(shape[0] // 4, 4, 4, generator=draw)}, 0.0)
    return Lora(adapters, base=base.model.family)


@pytest.mark.parametrize("family", ["sd21", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_file_a_folder_and_a_hub_id_are_the_same_base(family, tiny_file, tmp_path, monkeypatch):
    file, folder = tiny_file(family), tmp_path / "folder"
    write_model(find_model(file), folder)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda name, **options: str(folder))
    lora = given_the_base(StoredWeights(find_model(file)), 0)
    doras = Lora({module: adapter for module, adapter in lora.adapters.items() if adapter.kind == "lora"}, base=family)
    assert 2 <= len(doras) < len(lora) and len(lora.parts) > 1
    merge_into(file, [(lora, 1.0)], tmp_path / "tuned.safetensors")
    tools = {
        "resize": lambda base: resize(lora, rank=3, base=base),
        "merge": lambda base: merge([(lora, 0.5), (lora, 0.25)], rank=3, base=base),
        "ComfyUI's": lambda base: without_dora(doras, base),
        "extract": lambda base: extract(base, tmp_path / "tuned.safetensors", rank=3),
    }
    for name, tool in tools.items():
        expected, *others = (tool(base) for base in (str(file), folder, "owner/name"))
        assert expected.adapters and max(expected.errors.values()) > 0, name
        for made in others:
            assert made.adapters.keys() == expected.adapters.keys(), name
            for module, adapter in expected.adapters.items():
                assert torch.equal(made.delta(module), adapter.delta()), (name, module)
    for number, base in enumerate((folder, "owner/name")):
        merge_into(base, [(lora, 1.0)], tmp_path / f"{number}.safetensors")
        one, other = load_file(tmp_path / f"{number}.safetensors"), load_file(tmp_path / "tuned.safetensors")
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
