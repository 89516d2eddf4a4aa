"""What a checkpoint predicts (the noise, or v), and whether its noise schedule ends without signal.

Neither is seen from the weights' shapes. In this order, the first that tells decides:

    1. the user
    2. tensors without content, whose names are the message: `v_pred`, `ztsnr`
    3. the header: modelspec.prediction_type, modelspec.architecture (github.com/Stability-AI/ModelSpec), and
       modelspec.predict_key, which ComfyUI writes
    4. the file's name: v-pred, vpred, v_pred, 768-v; ztsnr, zsnr
    5. Stable Diffusion 2.x, of which both kinds exist: what its U-Net does to noise. At the last timestep the picture
       is almost all noise, so a model that predicts noise returns about its input, and one that predicts v does not
       (v = alpha * noise - sigma * picture, Salimans & Ho 2022, arXiv 2202.00512)
    6. all others predict the noise, as they were first published
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .families import Family

EPSILON, V = "epsilon", "v_prediction"
TYPES = EPSILON, V, "sample"
SAID = {"epsilon": EPSILON, "eps": EPSILON, "v": V, "v_prediction": V, "v-prediction": V, "v_pred": V}
IN_NAME = re.compile(r"v[-_ ]?pred|768[-_]?v(?![a-z])", re.IGNORECASE)
ZERO_IN_NAME = re.compile(r"zt?snr", re.IGNORECASE)
LAST_TIMESTEP = 999
ALIKE = 0.5  # cosine between a U-Net's input and output above which it predicts noise; 1 and 0 are expected


@dataclass(frozen=True)
class Prediction:
    """What a model predicts, and how that is known.

    Args:
        type: "epsilon", "v_prediction" or "sample".
        zero_snr: whether its noise schedule ends without signal (zero terminal signal-to-noise ratio).
        because: how that is known, as the end of a sentence; "" if it is what every such file does.
    """

    type: str
    zero_snr: bool
    because: str

    @property
    def text(self) -> str:
        """The whole in words, such as "v_prediction, with zero terminal SNR (it holds the key v_pred)"."""
        end = ", with zero terminal SNR" if self.zero_snr else ""
        return f"{self.type}{end} ({self.because})"

    def scheduler(self) -> dict[str, Any]:
        """The entries of a scheduler's config that it decides."""
        zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if self.zero_snr else {}
        return {"prediction_type": self.type, "timestep_spacing": "leading", **zero}


def told_prediction(
    family: Family, path: Path, names: Mapping[str, Any], metadata: Mapping[str, str], chosen: str | None = None
) -> Prediction | None:
    """What a checkpoint predicts, as far as that is said or usual; None if only its U-Net can tell (`seen_prediction`).

    Args:
        family: its family.
        path: the file.
        names: the tensors of the file.
        metadata: the texts in its header.
        chosen: what the user says.
    """
    zero, by_name = _zero_snr(path, names)
    told = (SAID.get(metadata.get(f"modelspec.{key}", "").lower()) for key in ("prediction_type", "predict_key"))
    said = next(filter(None, told), None)
    architecture = metadata.get("modelspec.architecture", "")
    if chosen is not None:
        return Prediction(chosen, zero, f"as you say{by_name}")
    if "v_pred" in names:
        return Prediction(V, zero, f"it holds the key v_pred{by_name}")
    if said is not None:
        return Prediction(said, zero, f"its header says so{by_name}")
    if architecture.startswith("stable-diffusion-v2-"):
        kind = V if architecture.startswith("stable-diffusion-v2-768") else EPSILON
        return Prediction(kind, zero, f"its header says {architecture}{by_name}")
    if IN_NAME.search(path.stem):
        return Prediction(V, zero, f"guessed from the file's name{by_name}")
    if family.name == "sd21":
        return None
    return Prediction(EPSILON, zero, f"as {family.title} does; neither keys, header nor name say otherwise{by_name}")


def seen_prediction(path: Path, names: Mapping[str, Any], like: float) -> Prediction:
    """What a checkpoint predicts, from what its U-Net makes of noise; `like`: see `likeness`."""
    zero, by_name = _zero_snr(path, names)
    because = f"neither keys, header nor name say; what its U-Net makes of noise has likeness {like:.2f} to it"
    return Prediction(EPSILON if like > ALIKE else V, zero, f"{because}{by_name}")


def _zero_snr(path: Path, names: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the noise schedule ends without signal; and, if only the file's name says so, that as a text."""
    guessed = "ztsnr" not in names and bool(ZERO_IN_NAME.search(path.stem))
    return "ztsnr" in names or guessed, ", and its name says zero terminal SNR" if guessed else ""


def likeness(unet: Any) -> float:
    """The cosine between noise and what a U-Net makes of it at the last timestep, without a prompt.

    Args:
        unet: a U-Net on the CPU, in any number format.
    """
    import torch

    side = 2 ** (len(unet.config["block_out_channels"]) - 1)
    channels, context = unet.config["in_channels"], unet.config["cross_attention_dim"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, channels, side, side, generator=generator).to(unet.dtype)
    with torch.no_grad():
        made = unet(noise, LAST_TIMESTEP, torch.zeros(1, 77, context, dtype=unet.dtype)).sample
    first = noise[:, : made.shape[1]].flatten().float()
    return torch.cosine_similarity(first, made.flatten().float(), dim=0).item()
