"""What a checkpoint predicts: the first sign decides, and is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sd_ext.models import find_model
from sd_ext.models.original.families import families
from sd_ext.models.original.prediction import told_prediction
from tests.models import original_layout as original

V, EPSILON = "v_prediction", "epsilon"
HEADER, OF_2 = {"modelspec.prediction_type": "v"}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}


@pytest.mark.parametrize(
    ("family", "name", "keys", "header", "chosen", "expected"),
    [
        ("sdxl", "a", [], {}, None, (EPSILON, False, "as Stable Diffusion XL does")),
        ("sd15", "a", [], {}, None, (EPSILON, False, "as Stable Diffusion 1.x does")),
        ("sdxl", "a", ["v_pred"], {}, None, (V, False, "it holds the key v_pred")),
        ("sdxl", "a", [], {"modelspec.predict_key": "v"}, None, (V, False, "its header says so")),
        ("sdxl", "a", [], {"modelspec.predict_key": "epsilon"}, None, (EPSILON, False, "its header says so")),
        ("sdxl", "a", ["v_pred", "ztsnr"], {}, None, (V, True, "it holds the key v_pred")),
        ("sdxl", "a", ["v_pred"], {"modelspec.prediction_type": "epsilon"}, None, (V, False, "key v_pred")),
        ("sdxl", "a", [], HEADER, None, (V, False, "its header says so")),
        ("sdxl", "noob-vpred-1.0", [], {}, None, (V, False, "guessed from the file's name")),
        ("sdxl", "noob_v-pred_ztsnr", [], {}, None, (V, True, "name, and its name says zero terminal SNR")),
        ("sdxl", "noob_v-pred", ["v_pred"], HEADER, EPSILON, (EPSILON, False, "as you say")),
        ("sd21", "v2-1_768-v-ema", [], {}, None, (V, False, "guessed from the file's name")),
        ("sd21", "v2-1_768-vibrant", [], {}, None, None),
        ("sd21", "a", [], OF_2, None, (V, False, "its header says stable-diffusion-v2-768-v")),
        ("sd21", "a", [], {"modelspec.architecture": "stable-diffusion-v2-512"}, None, (EPSILON, False, "v2-512")),
        ("sd21", "a", [], {}, V, (V, False, "as you say")),
        ("sd21", "a", [], {}, None, None),
    ],
)
def test_signs_in_their_order(family, name, keys, header, chosen, expected):
    path = Path(f"{name}.safetensors")
    found = told_prediction(families()[family], path, dict.fromkeys(keys), header, chosen)
    assert (found is None) == (expected is None)
    if found and expected:
        assert (found.type, found.zero_snr) == expected[:2]
        assert expected[2] in found.because


def that_returns_its_input(tensors):
    """Change a tiny checkpoint so that its U-Net returns about its input, whatever the timestep and the prompt.

    All residuals are nought, the last block takes the first convolution's output, which is the input and its negative
    in turn, and silu(x) - silu(-x) = x.
    """
    unet = "model.diffusion_model."
    for key, value in tensors.items():
        if key.startswith(unet) and key.endswith((".weight", ".bias")):
            value.zero_()
    first, last = tensors[f"{unet}input_blocks.0.0.weight"], tensors[f"{unet}out.2.weight"]
    width = first.shape[0]
    for channel in range(width):
        first[channel, channel // 2 % 4, 1, 1] = (-1) ** channel
        last[channel // 2 % 4, channel, 1, 1] = (-1) ** channel
    tensors[f"{unet}out.0.weight"].fill_(1)
    skip = tensors[f"{unet}output_blocks.3.0.skip_connection.weight"]
    skip[:, -width:, 0, 0] = torch.eye(width)
    return tensors


def test_a_file_of_2_that_does_not_say_is_looked_at_once(tmp_path, said):
    from safetensors.torch import save_file

    plain = original.tensors("sd21", torch.float16)
    for name, tensors, expected, side in (
        ("noise", that_returns_its_input(plain), EPSILON, 64),
        ("other", original.tensors("sd21", torch.float16), V, 96),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        model = find_model(tmp_path / f"{name}.safetensors")
        model.check()
        assert not said
        assert model.prediction_type == expected
        assert model.config("unet")["sample_size"] == side
        (message,) = said
        assert f"predicts {expected} (neither keys, header nor name say; what its U-Net makes of noise" in message
        said.clear()
    chosen = find_model(tmp_path / "noise.safetensors", prediction_type=V)
    assert chosen.prediction_type == V
    assert "as you say" in "\n".join(said)


def test_zero_terminal_snr_reaches_the_scheduler(tmp_path):
    listed = {**original.shapes("sdxl"), "v_pred": (0,), "ztsnr": (0,)}
    model = find_model(original.write_sparse(tmp_path / "a.safetensors", listed))
    noise = model.noise()
    assert (noise["prediction_type"], noise["rescale_betas_zero_snr"]) == (V, True)
    assert model.config("scheduler")["timestep_spacing"] == "trailing"
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler.from_config(model.config("scheduler"))
    assert scheduler.alphas_cumprod[-1] < 1e-6
