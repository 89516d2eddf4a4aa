"""docs/calibrated.md: its code runs, and its options are the class's."""

from __future__ import annotations

import re
from pathlib import Path

import sd_ext
from sd_ext.attaching import PIPELINES, detach
from sd_ext.board import BOARD

from .family import calibration

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "calibrated.md").read_text("utf-8")


def test_its_code_runs(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline
    sd_ext.CalibratedScheduler.from_calibration(calibration(), pipe.scheduler.config).save_pretrained(tmp_path)
    names = {"pipe": pipe, "folder": tmp_path}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) == 5
    try:
        for number, code in enumerate(blocks):
            exec(compile(code, f"block {number}", "exec"), names)
            assert type(pipe.scheduler) is sd_ext.CalibratedScheduler
        assert pipe.scheduler.fitted.guidance == (6.0,)
        assert (tmp_path / "exported" / "exported_scheduler.py").exists()
    finally:
        BOARD.notes.clear()
        detach(pipe)
        PIPELINES.clear()


def test_its_options_are_the_classs():
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", PAGE, re.M))
    own = {k: v for k, v in sd_ext.CalibratedScheduler._options.items() if k not in sd_ext.TableScheduler._options}
    assert rows == {name: repr(default) for name, default in own.items()}
