from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError
from sd_ext.hub import stage
from sd_ext.hub.stage import check_repo_id, finished_run

from ..few import few

REPO = "alice/brush"
DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "brush_kohya.safetensors"
TOKEN = "hf_" + "aB3" * 11


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def rewrite(file, tensors=None, **header):
    """Write a safetensors file anew with other tensors or more entries in its header."""
    with safe_open(file, "pt") as opened:
        header = {**opened.metadata(), **header}
    save_file({**load_file(file), **(tensors or {})}, file, header)


def refused(out, tmp_path, *words):
    """The message of staging what must not be published; nothing is left behind."""
    with pytest.raises(InputError) as caught:
        stage(out, tmp_path / "staged", REPO)
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def test_exactly_what_is_to_be_published(out, tmp_path):
    model = out / "model"
    for name in ("optimizer.bin", "events.out.tfevents.1", "latents.safetensors", ".env", "samples/notes.txt",
                 "samples/checkpoint.pt", "checkpoint-100/state.safetensors", "README.md"):  # fmt: skip
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(TOKEN)
    staged = stage(out, tmp_path / "new" / "staged", REPO)
    assert files_in(staged) == {
        DIFFUSERS, KOHYA, "learned_embeds.safetensors", "README.md", "validation.png",
        "samples/0000.png", "samples/0001.png", "samples/sheet.png",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"staged"}
    for name in (DIFFUSERS, KOHYA, "learned_embeds.safetensors"):
        assert (staged / name).read_bytes() == (model / name).read_bytes()
    assert {"optimizer.bin", ".env", "README.md", "training.json"} <= set(finished_run(out, REPO).left_out)
    assert not any(TOKEN.encode() in path.read_bytes() for path in staged.rglob("*") if path.is_file())


def test_pictures_keep_their_pixels_and_lose_their_text(finished, tmp_path):
    staged = stage(finished, tmp_path / "staged", REPO)
    for name in ("samples/0000.png", "samples/sheet.png", "validation.png"):
        with Image.open(finished / "model" / name) as before, Image.open(staged / name) as after:
            assert "alice" in before.text["parameters"]
            assert after.info == {}
            assert ImageChops.difference(before, after).getbbox() is None
        assert b"alice" not in (staged / name).read_bytes()


def test_the_least_there_is(plain, tmp_path):
    assert files_in(stage(plain, tmp_path / "staged", REPO)) == {DIFFUSERS, KOHYA, "README.md"}


def test_pictures_without_prompts(out, edit, tmp_path):
    edit(prompts=None, seeds=None, instance_prompt=None)
    assert "samples/0001.png" in files_in(stage(out, tmp_path / "staged", REPO))


def test_staging_twice_is_the_same(finished, tmp_path):
    one, two = (stage(finished, tmp_path / name, REPO) for name in ("one", "two"))
    assert files_in(one) == files_in(two)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files_in(one))


PLANTED = [(TOKEN, "an access token"), ("/home/alice/x", "an absolute path"), (r"C:\data\x", "an absolute path")]
PLACES = ["prompt", "header", "key", "kohya", "embedding"]


@pytest.mark.parametrize(
    ("where", "planted", "kind"),
    few(
        [(where, *planted) for planted in PLANTED for where in PLACES],
        lambda case: case[1] == TOKEN or case[0] == "prompt",
    ),
)
def test_secrets_are_found_and_not_repeated(out, edit, tmp_path, where, planted, kind):
    model, name = out / "model", "README.md"
    if where == "prompt":
        edit(prompts=["fine", planted])
    elif where in ("header", "key"):
        rewrite(model / (name := DIFFUSERS), **({"note": planted} if where == "header" else {planted: "note"}))
    elif where == "kohya":
        rewrite(model / (name := KOHYA), ss_training_comment=json.dumps({"from": planted}))
    else:
        name = "learned_embeds.safetensors"
        save_file({planted: torch.ones(2, 32)}, model / name)
        edit(tokens=["fine"], instance_prompt="fine", prompts=[])
    assert planted not in refused(out, tmp_path, name, kind)


def test_a_token_among_the_settings(out, edit, tmp_path):
    """In a table, `hf_` is written `hf\\_`."""
    edit(settings={"tracker": TOKEN})
    assert TOKEN not in refused(out, tmp_path, "README.md", "an access token")


def test_paths_among_the_settings_do_not_stop_it(out, edit, tmp_path):
    edit(settings={"data": "/home/alice/x", "rank": 4, "hints": ["/srv/a", "b"]}, base_model="/home/alice/base")
    card = (stage(out, tmp_path / "staged", REPO) / "README.md").read_text()
    assert "alice/brush" in card
    assert not {"/home", "/srv", "base_model:"} & set(card.split())
    assert "alice/base" not in card


def test_the_account_in_a_header(out, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "alice")
    rewrite(out / "model" / KOHYA, ss_dataset="pictures/alice/set")
    assert "alice" not in refused(out, tmp_path, KOHYA, "the user's account name")


@pytest.mark.parametrize("name", [DIFFUSERS, KOHYA])
def test_files_that_differ(out, tmp_path, name):
    file = out / "model" / name
    key, tensor = next((k, t) for k, t in load_file(file).items() if t.ndim == 2)
    rewrite(file, {key: tensor * 1.01})
    refused(out, tmp_path, "not the same LoRA", "they differ in")


def test_a_wrong_alpha(out, tmp_path):
    """Diffusers' own script writes alpha = rank into its kohya copy."""
    file = out / "model" / KOHYA
    key = next(k for k in load_file(file) if k.endswith(".alpha"))
    rewrite(file, {key: torch.tensor(4.0)})
    refused(out, tmp_path, "not the same LoRA")


def test_a_module_that_only_one_has(out, tmp_path):
    file = out / "model" / KOHYA
    tensors = load_file(file)
    module = min(tensors).partition(".")[0]
    save_file({k: t for k, t in tensors.items() if not k.startswith(module + ".")}, file)
    refused(out, tmp_path, "only one of them has")


def test_dora(dora_out, tmp_path):
    """What DoRA changes depends on the base as well, so that its magnitudes have to agree too."""
    assert stage(dora_out, tmp_path / "run" / "staged", REPO)
    file = dora_out / "model" / KOHYA
    key, tensor = next((k, t) for k, t in load_file(file).items() if "dora" in k)
    rewrite(file, {key: tensor * 1.01})
    refused(dora_out, tmp_path, "not the same LoRA")
    save_file({k: t for k, t in load_file(file).items() if "dora" not in k}, file)
    refused(dora_out, tmp_path, "not the same LoRA")


def test_stable_diffusion_xl(out, edit, tmp_path):
    from sd_ext.lora import Adapter, Lora, ModuleName, save_lora

    attention = "attentions.0.transformer_blocks.0.attn1.to_q"
    modules = [("unet", f"{block}.{attention}") for block in ("down_blocks.1", "mid_block", "up_blocks.0")]
    modules += [(part, "encoder.layers.0.self_attn.q_proj") for part in ("text_encoder", "text_encoder_2")]
    draw = torch.Generator().manual_seed(0)
    adapters = {
        ModuleName(*module): Adapter(
            "lora",
            {"down": torch.randn(rank, 16, generator=draw), "up": torch.randn(16, rank, generator=draw)},
            alpha=3.0,
        )
        for rank, module in enumerate(modules, 1)
    }
    lora = Lora(adapters, base="sdxl")
    save_lora(lora, out / "model" / DIFFUSERS)
    save_lora(lora, out / "model" / KOHYA, format="kohya")
    edit(family="sdxl")
    assert any("input_blocks" in key for key in load_file(stage(out, tmp_path / "staged", REPO) / KOHYA))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_no_difference(out, tmp_path, dtype):
    from sd_ext.lora import read_lora, save_lora

    lora = read_lora(out / "model" / DIFFUSERS)
    save_lora(lora, out / "model" / KOHYA, format="kohya", dtype=dtype)
    assert stage(out, tmp_path / "staged", REPO)


def test_strengths_that_are_not_in_the_file(out, tmp_path):
    """As Diffusers' examples write it: alpha / rank 0.5 would load as 1."""
    file = out / "model" / DIFFUSERS
    save_file(load_file(file), file, {"format": "pt"})
    refused(out, tmp_path, DIFFUSERS, "strengths")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(out, tmp_path, value):
    file = out / "model" / DIFFUSERS
    key, tensor = next(iter(load_file(file).items()))
    rewrite(file, {key: tensor.clone().fill_(value)})
    refused(out, tmp_path, DIFFUSERS, "not finite")


@pytest.mark.parametrize("name", [DIFFUSERS, KOHYA, "learned_embeds.safetensors"])
def test_half_a_file_and_a_pickle(out, tmp_path, name):
    file = out / "model" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(out, tmp_path, name, "not a safetensors file")
    torch.save({"a": torch.ones(1)}, file)
    refused(out, tmp_path, name, "not a safetensors file")
    file.write_bytes(whole + TOKEN.encode())  # after the tensors, where no reader looks
    refused(out, tmp_path, name, "not a safetensors file")


def test_embeddings_of_other_words(out, tmp_path):
    save_file({"<other>": torch.ones(2, 32)}, out / "model" / "learned_embeds.safetensors")
    refused(out, tmp_path, "<other>", "<brush>")


def test_embeddings_of_no_shape(out, tmp_path):
    save_file({"<brush>": torch.ones(1, 2, 32)}, out / "model" / "learned_embeds.safetensors")
    refused(out, tmp_path, "(vectors, dim)")


def test_a_lora_is_published_in_both_formats(out, tmp_path):
    (out / "model" / DIFFUSERS).unlink()
    refused(out, tmp_path, "both formats")


def test_a_picture_that_is_none(out, tmp_path):
    (out / "model" / "samples" / "0001.png").write_text("no picture")
    refused(out, tmp_path, "0001.png", "no picture that can be read")


def test_nothing_is_overwritten(finished, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(InputError, match="is there already"):
            stage(finished, target, REPO)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert files_in(stage(finished, tmp_path / "empty", REPO))


@pytest.mark.parametrize("repo_id", ["brush", "a/b/c", "alice/br ush", "alice/..", "alice/brush.git", "", "-a/b"])
def test_names_the_hub_does_not_know(repo_id):
    with pytest.raises(InputError):
        check_repo_id(repo_id)


def test_a_dry_run_touches_no_network(finished, tmp_path, monkeypatch):
    def no_network(*address):
        raise AssertionError(f"the network was touched: {address}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    assert stage(finished, tmp_path / "staged", REPO)


def test_links_are_neither_followed_nor_sent(out, tmp_path):
    """They may lead to what nobody meant to publish."""
    kept = tmp_path / "run" / "kept"
    shutil.move(out / "model" / KOHYA, kept)
    (out / "model" / KOHYA).symlink_to(kept)
    with pytest.raises(InputError, match="is a link, and links are not followed"):
        stage(out, tmp_path / "staged", REPO)
