"""Find out which Stable Diffusion a LoRA is for: from its header, or from the names and shapes of its modules."""

from __future__ import annotations

from collections.abc import Mapping

from ..adapter import Adapter, ModuleName

ARCHITECTURES = {"stable-diffusion-v1": "sd15", "stable-diffusion-v2": "sd21", "stable-diffusion-xl": "sdxl"}
CROSS_ATTENTION = {768: "sd15", 1024: "sd21", 2048: "sdxl"}  # width of the text states, which differs by base


def base_from_header(metadata: Mapping[str, str]) -> str | None:
    """The base model ("sd15", "sd21" or "sdxl") that a header's modelspec or kohya entries name; None if none."""
    architecture = metadata.get("modelspec.architecture", "")
    for beginning, base in ARCHITECTURES.items():
        if architecture.startswith(beginning):
            return base
    version = metadata.get("ss_base_model_version", "").lower()
    if version.startswith("sdxl"):
        return "sdxl"
    if metadata.get("ss_v2") == "True" or version.startswith(("sd_v2", "sd_2")):
        return "sd21"
    return "sd15" if version.startswith(("sd_v1", "sd_1")) else None


def guess_base(adapters: Mapping[ModuleName, Adapter]) -> str | None:
    """The base model that the modules and their shapes imply; None if they would fit SDXL as well as others."""
    unet = {module.path: adapter for module, adapter in adapters.items() if module.part == "unet"}
    # Without these layers SD 2.x looks like SD 1.x and counts as it; their files differ only in the header.
    widths = {
        CROSS_ATTENTION.get(adapter.shape[1]) if adapter.shape else None
        for path, adapter in unet.items()
        if path.endswith(("attn2.to_k", "attn2.to_v"))
    } - {None}
    if len(widths) == 1:
        return str(widths.pop())
    if any(module.part == "text_encoder_2" for module in adapters) or any(_only_sdxl(path) for path in unet):
        return "sdxl"
    return "sd15" if any(_never_sdxl(path) for path in unet) else None


def _only_sdxl(path: str) -> bool:
    """Whether only SDXL's U-Net has a module of this path."""
    later = ".transformer_blocks." in path and ".transformer_blocks.0." not in path
    return later or path.startswith(("add_embedding.", "up_blocks.0.attentions."))


def _never_sdxl(path: str) -> bool:
    """Whether SDXL's U-Net has no module of this path."""
    return path.startswith(
        ("down_blocks.0.attentions.", "down_blocks.3.", "up_blocks.3.", "down_blocks.2.downsamplers.",
         "up_blocks.2.attentions.", "up_blocks.2.upsamplers.")
    )  # fmt: skip
