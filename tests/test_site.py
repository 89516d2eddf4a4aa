"""The manual's site, the release and the skill file: what they name is there, and their code runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import sd_ext

from .test_recipes import commands, fenced, unreadable

ROOT = Path(__file__).resolve().parents[1]
DOCS, SKILL, UPSTREAM = ROOT / "docs", ROOT / ".agents/skills/sd-ext/SKILL.md", ROOT / "docs/upstream/sd_ext.md"
MADE = {"contributing.md", "changelog.md", "card.md"}


def script(path: str) -> ModuleType:
    """A file of .ci/ as a module, whether its name ends in .py or not."""
    name = Path(path).stem
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(ROOT / path)))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_nav() -> list[str]:
    """The pages of mkdocs.yml, whose tags for Python and the environment mean nothing here."""
    text = re.sub(r"!(!python\S*|ENV)", "", (ROOT / "mkdocs.yml").read_text("utf-8"))
    return re.findall(r"[\w./-]+\.md", str(yaml.safe_load(text)["nav"]))


def test_every_page_is_in_the_sites_contents():
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "upstream" not in path.parts}
    named = in_nav()
    assert len(named) == len(set(named))
    missing = {page for page in named if not page.startswith("api/")} ^ (pages | MADE)
    assert not missing, "in mkdocs.yml or among the files, and not in both"


def test_every_formula_becomes_mathml_and_every_public_name_has_its_place():
    pytest.importorskip("latex2mathml")
    pytest.importorskip("mkdocs")
    site = script(".ci/site.py")
    for page in DOCS.rglob("*.md"):
        for latex in re.findall(r"^```math\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            assert "<math" in site.formula(latex, page.name)
    made = site.reference()
    assert set(made) == {page for page in in_nav() if page.startswith("api/")}
    for name in ("schedulers.make_scheduler", "calibration.run.calibrate", "unets.variant.VariantUNet2DConditionModel"):
        assert any(f"::: sd_ext.{name.split('.')[0]}" in text for text in made.values())


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "which-sampler" / "index.html").is_file()


def test_strips_are_on_their_pages_and_small():
    strips = list((DOCS / "images/strips").glob("*.png"))
    assert strips and sum(path.stat().st_size for path in strips) < 2_000_000
    for path in strips:
        assert f"](../images/strips/{path.name})" in (DOCS / "samplers" / f"{path.stem}.md").read_text("utf-8")


# ---- release ---------------------------------------------------------------------------------------------------------


def test_the_readme_of_a_release_has_absolute_links_only():
    release = script(".ci/release")
    text = release.absolute((ROOT / "README.md").read_text("utf-8"), "owner/name", "v1")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links and all(link.startswith("https://") for link in links)
    assert "https://raw.githubusercontent.com/owner/name/v1/docs/images/compare.png" in links
    assert "https://github.com/owner/name/blob/v1/docs/which-sampler.md" in links
    pyproject = release.with_addresses((ROOT / "pyproject.toml").read_text("utf-8"), "owner/name", "v1")
    assert 'Repository = "https://github.com/owner/name"' in pyproject


def test_a_tag_that_is_not_the_version_is_refused():
    said = subprocess.run(
        [sys.executable, ROOT / ".ci/release", "--repository", "owner/name", "--ref", "v99"],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2 and f"says the version is {sd_ext.__version__}" in said.stderr


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == sd_ext.__version__ == script(".ci/release").version()
    assert f"\n## {sd_ext.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert citation["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", ["ci", "weekly", "site", "release"])
def test_workflows_run_what_is_there(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8")
    flow = yaml.safe_load(text)
    assert flow["jobs"] and flow["permissions"] == {"contents": "read"}
    for called in re.findall(r"(?<![\w/])\.ci/[\w-]+", text):
        assert (ROOT / called).stat().st_mode & 0o100, called


# ---- skill, upstream -------------------------------------------------------------------------------------------------


def test_the_skill_names_what_is_there():
    text = SKILL.read_text("utf-8")
    about = yaml.safe_load(text.split("---\n")[1])
    assert about["name"] == SKILL.parent.name and len(about["description"]) <= 1024
    wrong = {" ".join(call): why for call in commands(SKILL) if (why := unreadable(call))}
    assert not wrong and len(commands(SKILL)) > 12
    for name in set(re.findall(r"`sd_ext((?:\.\w+)+)`", text)):
        found = sd_ext
        for part in name[1:].split("."):
            found = getattr(found, part)
    for path in re.findall(r"`((?:docs/|CONTRI)[\w./-]+)`", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(("page", "language"), [(SKILL, "python"), (UPSTREAM, "py")], ids=["skill", "upstream"])
def test_the_code_of_the_skill_and_of_the_page_for_diffusers_runs(
    page, language, tiny_pipeline_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sd_ext, "pretrained_path", lambda: tiny_pipeline_dir, raising=False)
    names = {"model": tiny_pipeline_dir}
    for code in fenced(page, language):
        exec(compile(code, str(page), "exec"), names)
    assert names["image"]
