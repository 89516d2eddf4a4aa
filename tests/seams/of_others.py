from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from sd_ext.seams import peft as peft_seam
from sd_ext.seams import transformers as transformers_seam

from .probe import probe


def adapted(config: Any) -> Any:
    """A linear layer with this adapter, its factors random."""
    from peft import inject_adapter_in_model

    torch.manual_seed(0)
    model = inject_adapter_in_model(config, nn.Sequential(nn.Linear(6, 8, bias=False)), "one")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@probe("peft.acting")
def strengths_are_those_that_were_set() -> None:
    import peft

    lora = {"r": 4, "lora_alpha": 3, "target_modules": ["0"]}
    for config in (
        peft.LoraConfig(**lora),
        peft.LoraConfig(**lora, use_rslora=True),
        peft.LoHaConfig(r=2, alpha=3, target_modules=["0"]),
    ):
        model = adapted(config)
        layer, x = model[0], torch.rand(2, 6)
        plain = layer.get_base_layer()(x)
        assert peft_seam.acting(layer) == {"one": pytest.approx(1)}
        whole = layer(x) - plain
        layer.set_scale("one", 0.3)
        assert peft_seam.acting(layer) == {"one": pytest.approx(0.3)}
        torch.testing.assert_close(layer(x) - plain, 0.3 * whole)
        layer.merge()
        assert peft_seam.acting(layer) == {}
        layer.unmerge()
        layer.enable_adapters(False)
        assert peft_seam.acting(layer) == {}
    assert peft_seam.acting(nn.Linear(2, 2)) == {}


LYCORIS = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)


@probe("peft.adapter_of")
def adapters_in_memory_are_what_they_compute() -> None:
    import peft

    names = ("lora_A", "lora_B", "lora_magnitude_vector", *LYCORIS)
    lora = {"r": 4, "lora_alpha": 3, "target_modules": ["0"]}
    for config, scale in ((peft.LoraConfig(**lora), 3 / 4), (peft.LoraConfig(**lora, use_rslora=True), 3 / 2)):
        layer = adapted(config)[0]
        assert peft_seam.adapter_names(layer) == ("one",)
        held, x = peft_seam.adapter_of(layer, "one", names), torch.rand(2, 6)
        assert held.alpha / held.rank == pytest.approx(scale)
        change = x @ (held.factors["lora_B"] @ held.factors["lora_A"]).T * (held.alpha / held.rank)
        torch.testing.assert_close(layer(x), layer.get_base_layer()(x) + change)
        assert held.bias is None
        assert held.variant == ""
    dora = peft_seam.adapter_of(adapted(peft.LoraConfig(**lora, use_dora=True))[0], "one", names)
    assert "dora" in dora.variant.lower()
    assert dora.factors["lora_magnitude_vector"].shape == (8,)
    layer = adapted(peft.LoraConfig(**lora, lora_bias=True))[0]
    assert peft_seam.adapter_of(layer, "one", names).bias is not None
    for config in (peft.LoHaConfig(r=2, alpha=3, target_modules=["0"]), peft.LoKrConfig(r=2, target_modules=["0"])):
        held = peft_seam.adapter_of(adapted(config)[0], "one", names)
        assert held.rank == 2
        assert held.factors
        assert set(held.factors) <= set(LYCORIS)
    assert peft_seam.adapter_names(nn.Linear(2, 2)) == ()


@probe("peft.on_added")
def what_a_lora_adds_can_be_changed() -> None:
    import peft

    model = nn.Sequential(adapted(peft.LoraConfig(r=4, target_modules=["0"]))[0])
    x = torch.rand(2, 6)
    assert not torch.equal(model(x), model[0].get_base_layer()(x))
    assert peft_seam.on_added(model, lambda added: 0 * added) == 1
    torch.testing.assert_close(model(x), model[0].get_base_layer()(x))


@probe("peft.let_all_act")
def no_adapter_draws_whether_to_act() -> None:
    import peft

    model = adapted(peft.LoHaConfig(r=2, alpha=3, target_modules=["0"], module_dropout=0.999)).train()
    x = torch.rand(1, 6)
    peft_seam.let_all_act(model)
    assert all(not torch.equal(model(x), model[0].get_base_layer()(x)) for _ in range(10))


@probe("peft.pattern_for")
def patterns_hold_for_what_peft_says() -> None:
    from peft.utils.other import get_pattern_key

    patterns = ["to_q", "attn1.to_k", r"down_blocks\.\d.x", "^mid.proj"]
    for path in ("a.to_q", "to_q", "ato_q", "b.attn1.to_k", "attn2.to_k", "down_blocks.3.x", "mid.proj", "a.mid.proj"):
        found = peft_seam.pattern_for(path, patterns)
        assert get_pattern_key(patterns, path) == (path if found is None else found)


VISION = {
    "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
    "patch_size": 4, "projection_dim": 4,
}  # fmt: skip


@probe("transformers.with_prefix")
def text_encoders_read_weights_under_the_prefix(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"vocab_size": 9, "hidden_size": 4, "intermediate_size": 4, "projection_dim": 4}
    config = CLIPTextConfig(**sizes, num_hidden_layers=1, num_attention_heads=1)
    model = CLIPTextModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    named = {transformers_seam.with_prefix(key): value for key, value in load_file(file).items()}
    assert {name.partition(".")[0] for name in named} == {"text_model", "text_projection"}
    save_file(named, file, metadata={"format": "pt"})
    loaded = CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids).text_embeds, model(ids).text_embeds)
    path = "encoder.layers.0.mlp.fc1"
    assert transformers_seam.without_prefix(transformers_seam.with_prefix(path)) == path
    modules = dict(model.named_modules())
    (found,) = (module for name, module in modules.items() if name.endswith(path))
    assert transformers_seam.find_module(modules, path) is found
    clip = CLIPModel(CLIPConfig(text_config=config.to_dict(), vision_config=VISION, projection_dim=4)).eval()
    states = transformers_seam.text_tower(clip)(ids).last_hidden_state
    assert states.shape == (1, 3, 4)


@probe("xformers.has_gradient")
def operators_say_whether_they_have_a_gradient() -> None:
    if find_spec("xformers") is None:
        pytest.skip("xformers is not installed")
    from sd_ext.seams.xformers import has_gradient

    x = torch.rand(1, 4, 2, 8)
    assert has_gradient(x, x, x, None) in (True, False)
    assert not has_gradient(x.to("meta"), x.to("meta"), x.to("meta"), None)


@probe("python.variables_of_caller")
def variables_of_callers_are_found() -> None:
    from sd_ext.seams.python import variables_of_caller

    def outer(sought: int) -> Any:
        return inner()

    def inner() -> Any:
        return variables_of_caller("sought").get("sought")

    assert outer(7) == 7
    assert variables_of_caller("no such name") == {}
