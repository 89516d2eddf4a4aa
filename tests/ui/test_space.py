"""The folder that is a Space."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from sd_ext.errors import InputError, TakenError
from sd_ext.ui import Served, space
from sd_ext.ui.limits import SHARED


@pytest.fixture(autouse=True)
def _version(monkeypatch):
    """Of Gradio, which need not be here."""
    monkeypatch.setattr(space, "_gradio", lambda: "6.31.0")


def test_a_space_is_what_the_hub_reads(tmp_path):
    from huggingface_hub import metadata_load
    from packaging.requirements import Requirement

    folder = tmp_path / "space"
    paths = space.write_space(folder, ("owner/pipeline",), ("owner/style",))
    assert sorted(path.name for path in paths) == sorted(path.name for path in folder.iterdir())
    told = metadata_load(folder / "README.md")
    assert (told["sdk"], told["sdk_version"], told["app_file"]) == ("gradio", "6.31.0", "app.py")
    assert told["models"] == ["owner/pipeline"] and told["license"] == "apache-2.0"
    assert len(told["short_description"]) <= 60
    lines = (folder / "requirements.txt").read_text().splitlines()
    (need,) = [Requirement(line) for line in lines if not line.startswith("--")]
    assert (need.name, need.extras) == ("sd_ext", {"ui"})
    call = next(node for node in ast.walk(ast.parse((folder / "app.py").read_text())) if _is_served(node))
    given = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    served = Served(**given)
    assert (served.models, served.loras, served.host) == (("owner/pipeline",), ("owner/style",), "0.0.0.0")
    assert served.limits == SHARED


def _is_served(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Served"


def test_without_models_it_offers_the_embedded_one(tmp_path):
    space.write_space(tmp_path / "space")
    assert "models:" not in (tmp_path / "space" / "README.md").read_text()
    assert "comes with the package" in (tmp_path / "space" / "README.md").read_text()


@pytest.mark.parametrize("model", ["mine.safetensors", "/etc/passwd", "name"])
def test_files_cannot_be_in_a_space(tmp_path, model):
    with pytest.raises(InputError, match="a Space has no files of yours"):
        space.write_space(tmp_path / "space", (model,))
    assert not (tmp_path / "space").exists()


def test_nothing_is_replaced(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(TakenError):
        space.write_space(tmp_path)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.slow
def test_the_app_serves(tmp_path):
    """At another address than on the Hub; then it ends."""
    pytest.importorskip("gradio")
    space.write_space(tmp_path / "space")
    app = tmp_path / "space" / "app.py"
    code = app.read_text().replace("port=7860", "port=0").replace("0.0.0.0", "127.0.0.1")
    code = code.replace("serve(\n", "server = serve(\n", 1).replace(").wait()", ")")
    code += "import httpx\nprint(httpx.get(server.url, timeout=300).status_code)\nserver.close()\n"
    app.write_text(code)
    done = subprocess.run([sys.executable, app], capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines()[-1] == "200", done.stderr
