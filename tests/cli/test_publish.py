from __future__ import annotations

import pytest

from tests.cli.test_startup import SLOW, modules_after
from tests.hub import conftest as hub_tests

finished, hub, _no_stranger = hub_tests.finished, hub_tests.hub, hub_tests._no_stranger


def test_a_dry_run_writes_and_sends_nothing(run, finished, hub, tmp_path):
    shown = run("publish", "lora", finished, "alice/brush", "--dry-run", tmp_path / "staged")
    assert shown.code == 0, shown.err
    assert set(shown.paths) == {path for path in (tmp_path / "staged").rglob("*") if path.is_file()}
    assert tmp_path / "staged" / "README.md" in shown.paths
    assert "not published: training.json" in shown.err
    assert "no licence" in shown.err
    assert set(hub.names) <= {"hf_hub_download"}


def test_publishing(run, finished, hub):
    arguments = ("--private", "--revision", "v2", "--message", "Second try")
    shown = run("publish", "lora", finished / "model", "alice/brush", *arguments)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == "https://huggingface.co/alice/brush/commit/0\n"
    upload = dict(hub.calls)["upload_folder"]
    assert (upload["revision"], upload["commit_message"]) == ("v2", "Second try")
    assert dict(hub.calls)["create_repo"]["private"] is True


def test_a_mistake_is_one_sentence(run, tmp_path, hub):
    for arguments in (
        ("lora", tmp_path, "alice/brush"),
        ("lora", tmp_path, "brush"),
        ("lora", tmp_path / "missing", "alice/brush"),
        ("lora", tmp_path, "alice/brush", "--license", "mit"),
        ("sampler", "euler", "alice/brush"),
        ("unet", tmp_path, "alice/brush"),
        ("pipeline", tmp_path, "alice/brush", "--dry-run", tmp_path / "staged"),
    ):
        shown = run("publish", *arguments)
        assert (shown.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert hub.calls == []


def test_a_failure_of_the_hub_is_one_sentence(run, finished, hub):
    hub.fails["create_repo"] = ConnectionResetError("gone")
    shown = run("publish", "lora", finished, "alice/brush")
    assert (shown.code, shown.err.count("\n")) == (1, 1)


def test_a_sampler_is_staged_from_the_command(run, tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("sd_ext.schedulers.export.COUNTS", range(5, 7))
    to = tmp_path / "staged"
    shown = run("publish", "sampler", "euler", "alice/brush", "--model", tiny_pipeline_dir, "--dry-run", to)
    assert shown.code == 0, shown.err
    assert set(shown.paths) == {path for path in to.rglob("*") if path.is_file()}


def test_mail_is_asked_about(run, hub, tiny_pipeline_dir, tmp_path):
    """Nobody can answer here, so it is refused until the command says otherwise."""
    arguments = ("publish", "pipeline", tiny_pipeline_dir, "alice/brush", "--dry-run", tmp_path / "staged")
    link = ("--license", "other", "--license-link", "https://example.org/?ask=bob@example.org")
    shown = run(*arguments, *link)
    assert (shown.code, shown.err.count("\n")) == (2, 1) and "--allow-mail" in shown.err and "bob@" not in shown.err
    assert run(*arguments, *link, "--allow-mail").code == 0


@pytest.mark.parametrize("arguments", [["publish", "--help"], ["publish", "lora", "--help"], ["publish", "lora", "x"]])
def test_help_imports_nothing_slow(arguments):
    assert not modules_after(f"import sd_ext.cli; sd_ext.cli.main({arguments!r})") & SLOW
