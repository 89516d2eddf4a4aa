"""The package as it is shipped: what the wheel holds, and the README's two commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from itertools import chain

import pytest

import sd_ext

from .source import ROOT, import_statements, sources


def tracked(*paths: str) -> list[str]:
    """The files git knows, so that a colleague's or a build's leftovers do not count."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    names = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in names.stdout.split("\0") if name and (ROOT / name).exists()]


def test_the_wheel_holds_the_tracked_files_and_nothing_else(tmp_path):
    files = tracked("sd_ext", "pyproject.toml", "README.md", "LICENSE")
    for name in files:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "source" / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), "source"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.split("/", 1)[1] for name in archive.namelist() if ".dist-info/" in name}
    assert set(shipped) == {name for name in files if name.startswith("sd_ext/")}
    assert all(content == (ROOT / name).read_bytes() for name, content in shipped.items())
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= about
    assert wheel.name == f"sd_ext-{sd_ext.__version__}-py3-none-any.whl"


def test_the_source_archive_names_all_that_git_knows():
    named = set((ROOT / "MANIFEST.in").read_text("utf-8").split())
    by_itself = {"sd_ext", "LICENSE", "README.md", "pyproject.toml", "MANIFEST.in"}
    left_out = {".gitignore", "schedulers", "training"}  # the last two are links
    assert {name.split("/")[0] for name in tracked()} - by_itself - left_out <= named


def test_the_package_says_it_is_typed():
    assert (ROOT / "sd_ext" / "py.typed").is_file()


def test_the_script_is_the_command():
    scripts = [script for script in entry_points(group="console_scripts") if script.name == "sd-ext"]
    if not scripts:
        pytest.skip("sd_ext is not installed, only on the path")
    from sd_ext.cli import main

    assert scripts[0].load() is main


def test_ci_runs_the_readmes_test_command():
    commands = re.findall(r"^pip install .* && .*$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert commands == [
        'pip install -c constraints.txt . && sd-ext generate "a red apple"',
        'pip install -c constraints.txt -e ".[test]" && pytest',
    ]
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == commands[1]


@pytest.mark.parametrize("name", ["schedulers", "training"])
def test_the_links_at_the_front_door(name):
    link = ROOT / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / "sd_ext" / name


def test_nothing_imports_through_the_links():
    files = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    through = {"schedulers", "training"}
    assert not [path for path in files if {module.split(".")[0] for module, _ in import_statements(path)} & through]


def test_every_dependency_is_pinned_at_or_above_its_bound():
    tomllib = pytest.importorskip("tomllib")
    from packaging.requirements import Requirement
    from packaging.version import Version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and line[0] != "#"]
    pins: dict[str, list[Version]] = {}
    for pin in map(Requirement, lines):
        pins.setdefault(pin.name, []).append(Version(str(pin.specifier).removeprefix("==")))
    for need in map(Requirement, wanted):
        if need.name != "sd_ext":
            assert pins.get(need.name), f"{need.name} is not in constraints.txt"
            assert all(version in need.specifier for version in pins[need.name]), need


def test_the_lower_bounds_are_those_of_the_project():
    """What the weekly job installs: every requirement of the package and its extras, at the oldest that is promised."""
    tomllib = pytest.importorskip("tomllib")
    from packaging.requirements import Requirement

    text = (ROOT / "pyproject.toml").read_text("utf-8")
    printed = subprocess.run([sys.executable, ROOT / ".ci" / "lowest"], capture_output=True, text=True, check=True)
    pins = {pin.name: pin for pin in map(Requirement, printed.stdout.split("\n")[:-1])}
    project = tomllib.loads(text)["project"]
    needs = list(project["dependencies"])
    for extra in project["optional-dependencies"].keys() - {"test", "dev", "docs"}:
        needs += project["optional-dependencies"][extra]
    assert {need.name for need in map(Requirement, needs)} == set(pins)
    for need in map(Requirement, needs):
        (bound,), (pin,) = need.specifier, pins[need.name].specifier
        assert (bound.operator, pin.operator) == (">=", "==")
        assert bound.version == pin.version


def test_the_weekly_workflow_tries_seams_first():
    text = (ROOT / ".github" / "workflows" / "weekly.yml").read_text("utf-8")
    assert text.index("run: pytest tests/seams") < text.index("run: pytest\n")
    for versions in ("newest releases", "Diffusers' main", "lower bounds"):
        assert f"versions: {versions}" in text
    assert (ROOT / "tests" / "seams" / "test_seams.py").is_file()


def test_the_source_is_clean():
    files = [name for name in tracked("*.py") if not (ROOT / name).is_symlink()]
    for check in (["check"], ["format", "--check"]):
        shown = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--no-cache", *files], cwd=ROOT, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stdout + shown.stderr


@pytest.mark.slow
def test_the_types_are_clean():
    shown = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stdout
