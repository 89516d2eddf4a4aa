"""What is done to a U-Net before it is trained."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from sd_ext.training.model.settings import UnetSettings
from sd_ext.training.model.unet import prepare_unet


def test_texts_beside_the_time_reach_weights_in_bf16():
    """As with the embedded model: autocast leaves the texts in float32."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8,
        attention_head_dim=1, addition_embed_type="text", addition_embed_type_num_heads=2,
    ).to(torch.bfloat16)  # fmt: skip
    prepare_unet(unet, UnetSettings())
    x, states = torch.rand(2, 4, 4, 4), torch.rand(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        seen = unet(x, 5, states).sample
    assert seen.isfinite().all()
    assert not torch.equal(seen, unet(x.bfloat16(), 5, 0 * states.bfloat16()).sample)
