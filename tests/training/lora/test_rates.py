"""Learning rates by block: what the setting means, what is refused, and which weights it moves by how much."""

from __future__ import annotations

import pytest
import torch

from sd_ext.errors import InputError
from sd_ext.lora.adapter import ModuleName
from sd_ext.lora.blocks import CONVENTIONS, block_of
from sd_ext.training.lora.rates import block_rates, check_block_rates, text_share

from ..lora_cases import train

PATHS = [f"{side}_blocks.{n}.attentions.0.transformer_blocks.0.attn1.to_q" for side in ("down", "up") for n in (1, 10)]


def test_the_longest_name_counts():
    share = block_rates(("up_blocks=0.5", "up_blocks.1=2", "down_blocks.1 = 0"), "sd15", PATHS)
    assert [share(path) for path in PATHS] == [0.0, 1.0, 2.0, 0.5]  # "down_blocks.10" is not in "down_blocks.1"


def test_numbers_are_those_of_the_blocks_of_files():
    numbers = [n / 100 for n in range(26)]
    share = block_rates(tuple(map(str, numbers)), "sd15", PATHS)
    for path in (PATHS[0], PATHS[2], "mid_block.attentions.0.proj_in"):
        block = block_of(ModuleName("unet", path))
        assert share(path) == numbers[CONVENTIONS[26].index(block)]
    assert text_share(tuple(map(str, numbers)), "sd15") == 0.0
    assert text_share(("OUTD",), "sd15") == text_share((), "sd15") == text_share(("mid_block=0",), "sd15") == 1.0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("up_blocks=fast",), "'up_blocks=fast' is not NAME=SHARE"),
        (("up_blocks=-1",), "shares are 0 or more"),
        (("=1",), "is not NAME=SHARE"),
        (("up_blocks=inf",), "is not NAME=SHARE"),
        (("up_blocks=1", "mid_block"), "'mid_block' is not NAME=SHARE"),
        (("1", "2"), "give 12, 17, 20, 26 numbers"),
        (("OUTX",), "unknown preset of block weights"),
        (("-1",) * 12, "cannot be -1 times"),
    ],
)
def test_what_cannot_be_read_is_refused(texts, message):
    with pytest.raises(InputError, match=message):
        check_block_rates(texts)


def test_a_block_that_is_not_there_and_nothing_left():
    with pytest.raises(InputError, match=r"no module with an adapter is in up_blocks\.7"):
        block_rates(("up_blocks.7=1",), "sd15", PATHS)
    with pytest.raises(InputError, match="12 block weights are not for this model"):
        block_rates(("1",) * 12, "sd15", PATHS)


def test_a_block_moves_by_its_share_and_one_of_0_gets_no_adapter(bases, picture_folder, tmp_path):
    """One step of SGD from B = 0: twice the rate is twice the step. The last block in the order of drawing is left out,
    so that the A of all others are the same."""
    common = {"data": str(picture_folder), "optimizer": "sgd", "learning_rate": 0.1, "steps": 1, "clip": 0.0,
              "blocks": ("down_blocks.1", "down_blocks.2", "mid_block")}  # fmt: skip
    plain = train(bases["sd15"], tmp_path / "plain", **common)
    apart = train(bases["sd15"], tmp_path / "apart", **common, block_rates=("down_blocks.1=2", "mid_block=0"))
    before, after = (dict(run.task.model.named_parameters()) for run in (plain, apart))
    assert any("mid_block" in name for name in plain.changed())
    assert not any("mid_block" in name for name in apart.changed())
    moved = [name for name in apart.changed() if "lora_B" in name]
    assert {name.split(".")[2] for name in moved} == {"1", "2"}
    for name in moved:
        assert after[name].any()
        torch.testing.assert_close(after[name], before[name] * (2 if ".down_blocks.1." in f".{name}" else 1))
