"""Chooses the modules that get an adapter, and builds peft's configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.lora.kinds import find_kind
from sd_ext.training.lora.settings import AdapterSettings

KINDS = {
    "attention": r".*attn\d\.(to_q|to_k|to_v|to_out\.0)",
    "cross_attention": r".*attn2\.(to_q|to_k|to_v|to_out\.0)",
    "feed_forward": r".*\.ff\.net\.(0\.proj|2)",
    "projection": r".*\.proj_(in|out)",
    "resnet": r".*resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)",
    "sampler": r".*(down|up)samplers\.\d+\.conv",
    "all": r".*(down_blocks|mid_block|up_blocks)\..*",
}
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
ABLE = (nn.Linear, nn.Conv2d)


def target_modules(model: nn.Module, targets: Sequence[str], blocks: Sequence[str] = ()) -> list[str]:
    """The names of the linear and convolution modules that the settings `targets` and `blocks` select.

    Args:
        model: a U-Net or text encoder.
        targets: kinds of modules (keys of `KINDS`), or ends of module names.
        blocks: beginnings of module names; only modules inside these blocks are selected. Empty for all.

    Returns:
        Module names, in the model's order.

    Raises:
        InputError: a target or block matches no module; lists what there is.
    """
    able = [name for name, module in model.named_modules() if isinstance(module, ABLE)]
    for block in blocks:
        if not any(name.startswith(block) for name in able):
            there = ", ".join(dict.fromkeys(re.match(r"[^.]+(\.\d+)?", name)[0] for name in able))  # type: ignore[index]
            raise InputError(f"no module's name starts with {block}; there are {there}")
    inside = [name for name in able if not blocks or name.startswith(tuple(blocks))]
    chosen: set[str] = set()
    for target in targets:
        pattern = KINDS.get(target) or rf"(.*\.)?{re.escape(target)}"
        found = {name for name in inside if re.fullmatch(pattern, name)}
        if not found and any(re.fullmatch(pattern, name) for name in able):
            raise InputError(
                f"target {target} is in none of the blocks {', '.join(blocks)}; choose others, or no blocks"
            )
        if not found:
            ends = {name.rpartition(".")[2] for name in inside if not name[-1].isdigit()}
            raise UnknownNameError("target", target, [*KINDS, *ends])
        chosen |= found
    return [name for name in inside if name in chosen]


def peft_config(settings: AdapterSettings, model: nn.Module, names: Sequence[str], rank: int) -> Any:
    """Build peft's configuration of the adapters of a model.

    Args:
        settings: kind of adapter, alpha, initialisation, and the rank and alpha of convolutions.
        model: the model that gets the adapters.
        names: the names of its modules that get one, from `target_modules`.
        rank: the rank of the adapters of linear layers, and of convolutions unless `conv_rank` is set.

    Returns:
        A configuration object of peft, such as `LoraConfig`.

    Raises:
        InputError: the initialisation works for linear layers only, and a module is a convolution.
    """
    alpha = settings.alpha or rank
    modules = dict(model.named_modules())
    convolutions = [re.escape(name) for name in names if isinstance(modules[name], nn.Conv2d)]
    if convolutions and settings.changes_base:
        raise InputError(
            f"init = {settings.init} is for linear layers, and targets mean convolutions as well, such as "
            f"{next(n for n in names if isinstance(modules[n], nn.Conv2d))}: choose other targets or init = default"
        )
    conv_rank = settings.conv_rank or rank
    conv_alpha = settings.conv_alpha or alpha * conv_rank / rank
    common: dict[str, Any] = {
        "r": rank,
        "target_modules": list(names),
        "rank_pattern": dict.fromkeys(convolutions, conv_rank) if conv_rank != rank else {},
        "alpha_pattern": dict.fromkeys(convolutions, conv_alpha) if conv_alpha != alpha else {},
    }
    weightless = any(p.is_meta for p in model.parameters())  # without weights, PiSSA and OLoRA cannot be computed
    init = True if settings.init == "default" or weightless else settings.init
    return find_kind(settings.method).peft_config(common, alpha, init, settings)


def add_adapters(model: Any, settings: Any, seed: int) -> None:
    """Freeze a model and add trainable float32 adapters to it, in place.

    Args:
        model: a U-Net or text encoder, which has `add_adapter`.
        settings: peft's configuration, from `peft_config`.
        seed: seed of the adapters' initial weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.requires_grad_(False)
        model.add_adapter(settings)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def trained_parameters(model: nn.Module) -> int:
    """The number of trained parameters of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
