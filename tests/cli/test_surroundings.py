"""Outputs that are closed or take ASCII only, a working folder that is gone, names that are too long: one sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LONG = "x" * 256
COMMANDS = [
    ["info", f"{LONG}.png"],
    ["generate", "an apple", "--model", LONG],
    ["generate", "an apple", "--out", f"{LONG}.png"],
    ["generate", "an apple", "--out", f"{LONG}/a.png"],
    ["convert", "lora", LONG, "a.safetensors"],
    ["convert", "lora", "a", f"{LONG}.safetensors"],
    ["convert", "merge", f"{LONG}:0.5", "--out", "a.safetensors"],
    ["convert", "merge", "a", "--into", LONG, "--out", "b"],
    ["convert", "extract", LONG, LONG, "--out", "a.safetensors", "--rank", "1"],
    ["convert", "resize", LONG, "--out", "a.safetensors", "--rank", "1"],
    ["publish", "lora", LONG, "owner/name"],
    ["publish", "lora", ".", "owner/name", "--dry-run", LONG],
    ["train", "lora", f"{LONG}.toml"],
    ["train", "lora", "embedded", "--data", LONG, "--out", "run"],
    ["train", "lora", "embedded", "--data", ".", "--out", LONG],
    ["train", "autoencoder", "--data", LONG, "--out", "run"],
    ["train", "text-encoder", "--data", LONG, "--out", "run"],
    ["train", "text-to-image", "--model", LONG, "--data", LONG, "--out", "run"],
    ["train", "from-scratch", "--out", LONG],
    ["train", "from-scratch", "--out", "run", "--recipe", LONG],
    ["train", "data", "--out", LONG],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(w[:12] for w in words[:6]))
def test_a_name_that_is_too_long(run, command):
    ended = run(*command)
    assert ended.code == 2
    said = [line for line in ended.err.splitlines() if line.startswith("sd-ext: ")]
    assert len(said) == 1 and "Traceback" not in ended.err


@pytest.mark.parametrize("command", [["samplers"], ["--version"], *COMMANDS[::4]], ids=lambda words: words[0])
def test_a_working_folder_that_is_gone(run, command, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    ended = run(*command)
    monkeypatch.chdir(tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "sd-ext: the working folder is gone; change to one that exists\n"


def started(*words: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "sd_ext.cli", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def test_a_closed_output():
    for closed, code in (([1], 2), ([1, 2], 2), ([0, 2], 0)):
        process = started(
            "--version", stdout=subprocess.DEVNULL, preexec_fn=lambda fds=closed: [os.close(n) for n in fds]
        )
        said = process.communicate()[1]
        assert process.returncode == code
        assert ("standard output is closed" in said) == (closed == [1])


def test_an_output_that_nobody_reads():
    process = started("--help", stdout=subprocess.PIPE)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 1
    assert said == "sd-ext: standard output was closed before all was written\n"


def test_a_full_disk():
    with open("/dev/full", "w") as full:
        process = started("--version", stdout=full)
        said = process.communicate()[1]
    assert (process.returncode, said) == (1, "sd-ext: No space left on device\n")


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_an_output_of_ascii(tmp_path, variables):
    """The name in the message has no ASCII, and on the output neither."""
    (tmp_path / "é.png").write_bytes(b"?")
    shown = subprocess.run(
        [sys.executable, "-m", "sd_ext.cli", "info", "é.png"], cwd=tmp_path, capture_output=True,
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (shown.returncode, shown.stdout) == (2, b"")
    assert shown.stderr.startswith(b"sd-ext: ") and shown.stderr.count(b"\n") == 1
    code = "import sd_ext.cli as cli; cli.app = lambda args, **_: print('caf\\xe9'); cli.main([])"
    shown = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True)
    assert shown.returncode == 0
    escaped = shown.stdout == b"caf\\xe9\n"
    assert escaped or shown.stdout == "café\n".encode()
    assert (b"was written as escapes" in shown.stderr) == escaped
