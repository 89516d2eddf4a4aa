from __future__ import annotations

import pytest

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.hub import read_finished
from sd_ext.hub.finished import FinishedRun


def test_the_output_and_its_model_folder_are_the_same_run(finished):
    run = read_finished(finished)
    assert run == read_finished(finished / "model")
    assert run.weights == ["pytorch_lora_weights.safetensors", "brush_kohya.safetensors"]
    assert run.samples == ["samples/0000.png", "samples/0001.png"]
    assert run.validation == ((0, 0.5), (100, 0.25), (200, 0.3))


def test_samples_are_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("10000", "9999", "0002", "sheet", "base_0001"):
        (tmp_path / "samples" / f"{name}.png").touch()
    run = FinishedRun("n", "b", "sd15", 1, 1, folder=tmp_path)
    assert run.samples == ["samples/0002.png", "samples/9999.png", "samples/10000.png"]


def test_what_is_not_known_may_be_left_out(plain):
    run = read_finished(plain)
    assert (run.instance_prompt, run.prompts, run.guidance, run.samples, run.embeddings) == ("", (), None, [], [])


def test_a_loss_that_is_not_a_number_is_no_point_of_the_curve(out, edit):
    edit(validation=[[0, 0.5], [100, float("nan")]])
    assert read_finished(out).validation == ((0, 0.5),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../brush"}, "name must be a plain file name"),
        ({"name": "a>b"}, "name must be"),
        ({"name": None}, "lacks name"),
        ({"base_model": None, "steps": None}, "lacks base_model"),
        ({"base_model": " "}, "base_model must be"),
        ({"steps": True}, "steps must be a whole number"),
        ({"steps": -1}, "steps must be"),
        ({"prompts": "one"}, "prompts must be a list of texts"),
        ({"seeds": [1.5]}, r"seeds\[0\] must be a whole number"),
        ({"guidance": float("inf")}, "guidance must be"),
        ({"settings": []}, "settings must be"),
        ({"validation": [[1]]}, r"validation\[0\] must be a list of 2: a whole number, a number"),
    ],
)
def test_facts_of_the_wrong_kind(out, edit, changes, message):
    edit(**changes)
    with pytest.raises(InputError, match=message):
        read_finished(out)


def test_an_unknown_family(out, edit):
    edit(family="sd1.5")
    with pytest.raises(UnknownNameError, match="did you mean 'sd15'"):
        read_finished(out)


def test_no_finished_run(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_finished(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no training\.json"):
        read_finished(tmp_path)
    for text in ("{", "[]", b"\xff"):
        (tmp_path / "training.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=r"training\.json"):
            read_finished(tmp_path)


@pytest.mark.parametrize("name", ["brush_kohya.safetensors", "learned_embeds.safetensors"])
def test_a_missing_file_is_named(out, name):
    (out / "model" / name).unlink()
    with pytest.raises(InputError, match=f"holds no {name}"):
        read_finished(out)
