from __future__ import annotations

from PIL import Image


def test_how_a_picture_was_made(run, tiny_pipeline_dir):
    path = run("generate", "red apple", "--model", tiny_pipeline_dir, "--steps", 2).paths[0]
    shown = run("info", path)
    assert shown.code == 0
    facts = dict(line.split(maxsplit=1) for line in shown.out.splitlines()[:-2])
    assert facts["prompt"] == "red apple"
    assert facts["model"] == str(tiny_pipeline_dir)
    assert (facts["steps"], facts["seed"], facts["size"], facts["dtype"]) == ("2", "0", "64x64", "float32")
    assert facts["software"].startswith("sd_ext ")


def test_pictures_that_do_not_say(run, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "mute.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, message in [
        ("mute.png", "does not say how it was made"),
        ("text.png", "cannot be read as a picture"),
        ("none.png", "no such picture"),
        (".", "cannot be read as a picture"),
    ]:
        refused = run("info", name)
        assert (refused.code, refused.out) == (2, "")
        assert message in refused.err
        assert refused.err.count("\n") == 1
