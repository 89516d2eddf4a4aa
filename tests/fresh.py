"""Code in a process that has imported nothing of this package, without waiting for torch and Diffusers each time.

One process a test process imports the libraries, once; every piece of code runs in a fork of it, which ends with it.
What must hold where torch is not imported either needs a process of its own: `python -c`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


class Fresh:
    """`fresh(code, *arguments)` is `python -c code *arguments` in the repository's folder, with the libraries loaded.

    Args:
        folder: for what the code prints, and for modules that Diffusers copies to its cache.
    """

    def __init__(self, folder: Path):
        self.folder, self.runs, self.server = folder, 0, None

    def __call__(self, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        server = self.server = self.server or self._start()
        self.runs += 1
        said = [self.folder / f"{self.runs}.{stream}" for stream in ("out", "err")]
        request = {"code": code, "arguments": [str(a) for a in arguments], "said": [str(path) for path in said]}
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        ended = server.stdout.readline()
        assert ended, "the process with the libraries has ended"
        return subprocess.CompletedProcess([code, *arguments], int(ended), *(path.read_text() for path in said))

    def _start(self) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {**os.environ, "HF_MODULES_CACHE": str(self.folder / "modules")}
        return subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, **pipes)

    def close(self) -> None:
        if self.server:
            with self.server:  # closes its input, at which it ends
                pass


def serve() -> None:
    """Read requests from the standard input, a line each; answer with exit codes."""
    import gc

    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import torch._dynamo  # noqa: F401
    import transformers  # noqa: F401
    from diffusers import DDPMPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline  # noqa: F401

    assert not any(name.split(".")[0] == "sd_ext" for name in sys.modules)
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(run(**json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(code: str, arguments: list[str], said: list[str]) -> int:
    """The exit code of a program, as Python has it; what it prints goes to the two files."""
    sys.stdin = open(os.devnull)  # noqa: SIM115  # as long as the process lives
    for stream, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv[:], sys.path[0] = ["-c", *arguments], ""
    main = sys.modules["__main__"] = ModuleType("__main__")
    ended = 0
    try:
        exec(compile(code, "<code>", "exec"), main.__dict__)
    except SystemExit as asked:
        ended = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        if isinstance(asked.code, str):
            print(asked.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        ended = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return ended


if __name__ == "__main__":
    serve()
