from __future__ import annotations

import sd_ext


def test_every_sampler_and_grid_is_listed(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    shown = run("samplers")
    assert shown.code == 0
    for known in (*sd_ext.list_samplers(), *sd_ext.list_grids()):
        assert known.name in shown.out
