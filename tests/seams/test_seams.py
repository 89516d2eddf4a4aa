"""Which seam is open, said by name; and that a missing part stops nothing but what needs it."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from sd_ext.errors import SdExtError, SeamError
from sd_ext.seams.diffusers.pipelines import running_pipeline
from sd_ext.seams.peft import adapter_of
from sd_ext.seams.seam import Seam, seams
from sd_ext.seams.torch import version

from . import of_accelerate, of_diffusers, of_others, of_torch  # noqa: F401  they enter their probes
from .probe import PROBES, call, tiny_unet


@pytest.mark.parametrize("name", sorted(seams()))
def test_seam_is_closed(name, request):
    """A failure here means: a library has moved what this seam reaches. `sd_ext.seams` says what then stops working."""
    tried = PROBES[name]
    tried(**{fixture: request.getfixturevalue(fixture) for fixture in inspect.signature(tried).parameters})


def test_every_probe_is_a_seams():
    assert set(PROBES) == set(seams())


@pytest.mark.parametrize("known", seams().values(), ids=lambda known: known.name)
def test_a_seam_says_where_it_was_seen_and_what_is_lost(known):
    assert known.parts
    assert known.seen.startswith({"python": "CPython"}.get(known.library, known.library))
    assert known.gone


def test_the_message_names_the_library_its_version_the_part_and_what_to_do():
    known = Seam("torch.example", ("_part", "_other"), "torch 1.0, torch.nn", "the example")
    message = str(known.error())
    assert isinstance(known.error(), SdExtError)
    for words in ("the example", f"torch {torch.__version__}", "_part, _other", "torch 1.0, torch.nn", "install"):
        assert words in message
    assert "_other" not in str(known.error("_part"))


# ---- a part goes -----------------------------------------------------------------------------------------------------


Action = Callable[[], Any]


def variant(**options: Any) -> Any:
    from sd_ext.unets.variant import VariantUNet2DConditionModel

    return VariantUNet2DConditionModel.from_unet(tiny_unet(), **options)


def strengths_by_block() -> Action:
    model = variant()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]), "one")
    return lambda: model.set_adapters("one", {"down": 0.25})


def a_choice_of_attention() -> Action:
    from sd_ext.unets import set_attention

    model = tiny_unet()
    return lambda: set_attention(model, "sdpa")


def changed(**options: Any) -> Callable[[], Action]:
    def prepared() -> Action:
        model = variant()
        return lambda: model.set_options(**options)

    return prepared


def a_copy() -> Action:
    model = tiny_unet()
    return lambda: type(variant()).from_unet(model)


def memory_of_a_run() -> Action:
    from sd_ext.seams.torch import fake_tensors, storage_number, watching

    def act() -> None:
        with fake_tensors(), watching(lambda tensor: storage_number(tensor.untyped_storage())):
            _ = torch.empty(3) + 1

    return act


NEEDED: list[tuple[str, str, Callable[[], Action]]] = [
    ("diffusers", "diffusers.loaders.peft._SET_ADAPTER_SCALE_FN_MAPPING", strengths_by_block),
    ("diffusers", "diffusers.models.attention_processor.Attention", a_choice_of_attention),
    ("diffusers", "diffusers.models.attention_processor.Attention.prepare_attention_mask", a_choice_of_attention),
    ("diffusers", "diffusers.models.attention_processor.AttnProcessor2_0", a_choice_of_attention),
    ("diffusers", "diffusers.models.attention.BasicTransformerBlock", changed(token_merge_ratio=0.5)),
    ("diffusers", "diffusers.models.downsampling.Downsample2D", changed(highres_factor=2.0)),
    ("torch", "torch.nn.Module._compiled_call_impl", a_copy),
    ("torch", "torch._subclasses.fake_tensor.FakeTensorMode", memory_of_a_run),
    ("torch", "torch.utils._python_dispatch.TorchDispatchMode", memory_of_a_run),
]
"""A library, a part of it that goes, and what cannot be had then."""


@pytest.mark.parametrize("library, part, need", NEEDED, ids=[part for _, part, _ in NEEDED])
def test_what_needs_a_missing_part_says_so(library, part, need, monkeypatch):
    owner, _, name = part.rpartition(".")
    need()()
    act = need()
    monkeypatch.delattr(pkgutil.resolve_name(owner), name)
    with pytest.raises(SeamError, match=rf"{library} [\d.+a-z]+, which has no {name} where.*install"):
        act()


def test_a_part_that_an_object_lacks_is_named():
    layer = of_others.adapted(peft.LoraConfig(r=2, target_modules=["0"]))[0]
    del layer.lora_variant
    with pytest.raises(SeamError, match="has no lora_variant"):
        adapter_of(layer, "one", ["lora_A", "lora_B"])


def test_without_frames_nobody_says_what_a_batch_is(monkeypatch):
    monkeypatch.delattr("sys._getframe")
    assert running_pipeline() is None


def test_errors_of_other_kinds_pass():
    with pytest.raises(AttributeError, match="is_inference"):
        version(3)  # type: ignore[arg-type]


def test_one_strength_for_all_blocks_needs_no_seam(monkeypatch):
    def missing(*_: Any) -> None:
        raise SeamError("missing")

    monkeypatch.setattr("sd_ext.unets.overrides.expand_strengths_as", missing)
    model = variant()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]), "one")
    model.set_adapters("one", 0.5)
    assert torch.isfinite(call(model)).all()
    with pytest.raises(SeamError):
        model.set_adapters("one", [{"mid": 0.5}])


def test_weights_are_averaged_one_by_one_where_they_cannot_be_together(monkeypatch):
    monkeypatch.delattr(torch, "_foreach_lerp_")
    PROBES["torch.lerp_all"]()


ALL_GONE = (Path(__file__).with_name("all_gone.py")).read_text("utf-8")


def test_everything_imports_and_draws_where_all_parts_are_missing(fresh):
    done = fresh(ALL_GONE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all imported; drawn"
