"""However a command ends, it is one sentence and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest

from sd_ext.endings import run_to_end
from sd_ext.errors import InputError, TrainingError


class Output(io.TextIOWrapper):
    """A standard output with an encoding."""

    def __init__(self, encoding: str):
        super().__init__(io.BytesIO(), encoding)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8", "surrogateescape")


def raises(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("bad\n\x1binput"), 2, r"x: bad \x1binput"),
        (TrainingError("failed"), 1, "x: failed"),
        (KeyboardInterrupt(), 130, ""),
        (KeyboardInterrupt("stopped at step 3"), 130, "x: stopped at step 3"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a\nb"), 2, "x: a b: No such file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 256), 2, f"x: {'a' * 256}: File name too long"),
        (PermissionError(errno.EACCES, "Permission denied", b"a"), 2, "x: a: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "x: No space left on device"),
        (OSError("something"), 1, "x: something"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "x: standard output was closed before all was written"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 2, "x: the working folder is gone"),
        (MemoryError(), 1, "x: there is not enough memory"),
        (SystemExit(3), 3, ""),
        (SystemExit("words"), 1, ""),
    ],
)
def test_what_is_raised_is_a_sentence_and_a_code(capsys, monkeypatch, error, code, words):
    monkeypatch.setattr("sys.stdout", Output("utf-8"))
    assert run_to_end(raises(error), "x") == code
    said = capsys.readouterr().err
    assert said.startswith(words) and said.count("\n") == bool(words)


def test_a_fault_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_to_end(lambda: 1 // 0, "x")


def test_the_result_is_the_code():
    assert (run_to_end(lambda: None, "x"), run_to_end(lambda: 4, "x")) == (0, 4)


def test_characters_that_the_output_lacks_are_escaped_and_that_is_said(capsys, monkeypatch):
    for encoding, shown, said in (("ascii", r"caf\xe9 \U0001f34e", True), ("utf-8", "café 🍎", False)):
        output = Output(encoding)
        monkeypatch.setattr("sys.stdout", output)
        assert run_to_end(lambda: print("café 🍎"), "x") == 0
        assert output.text() == f"{shown}\n"
        assert (f"x: what {encoding} cannot hold was written as escapes" in capsys.readouterr().err) == said
        assert output.errors == "strict"


def test_a_name_that_is_no_text_is_written_as_its_bytes(capsys, monkeypatch):
    output = Output("utf-8")
    monkeypatch.setattr("sys.stdout", output)
    assert run_to_end(lambda: print(os.fsdecode(b"caf\xe9")), "x") == 0
    assert output.text() == os.fsdecode(b"caf\xe9\n")
    assert capsys.readouterr().err == ""


def test_a_closed_output_is_said_before_anything_is_done(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    assert run_to_end(raises(AssertionError()), "x") == 2
    assert capsys.readouterr().err == "x: standard output is closed; send it somewhere, such as to /dev/null\n"


def test_a_working_folder_that_is_gone_is_said_before_anything_is_done(capsys, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run_to_end(raises(AssertionError()), "x") == 2
    monkeypatch.chdir(tmp_path)
    assert capsys.readouterr().err == "x: the working folder is gone; change to one that exists\n"


def test_an_output_that_fails_at_the_last_moment(capsys, monkeypatch):
    class Full(Output):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    for command in (lambda: print("a"), raises(SystemExit(0))):
        monkeypatch.setattr("sys.stdout", Full("utf-8"))
        assert run_to_end(command, "x") == 1
        assert capsys.readouterr().err == "x: No space left on device\n"
        sys.stdout = sys.__stdout__


@pytest.mark.parametrize("program", ["Typer", "rich"])
def test_an_output_nobody_reads_any_more(capsys, program):
    """Both leave by `SystemExit` while they handle the broken pipe."""

    def command() -> None:
        try:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        except OSError:
            sys.exit(1)

    assert run_to_end(command, "x") == 1
    assert capsys.readouterr().err == "x: standard output was closed before all was written\n"


def test_a_process_that_is_one_command_collects_seldom_and_a_call_of_main_leaves_the_collector_alone(monkeypatch):
    import gc

    from sd_ext.cli import main

    before, frozen = gc.get_threshold(), []
    monkeypatch.setattr("atexit.register", frozen.append)
    try:
        assert main(["--version"]) == 0
        assert gc.get_threshold() == before and not frozen
        monkeypatch.setattr(sys, "argv", ["sd-ext", "--version"])
        assert main() == 0
        assert gc.get_threshold()[0] > before[0] and gc.isenabled() and frozen == [gc.freeze]
    finally:
        gc.set_threshold(*before)
