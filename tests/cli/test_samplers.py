from __future__ import annotations

import sd_ext


def test_every_sampler_and_grid_is_listed_in_80_columns(run):
    shown = run("samplers")
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) < 80
    begins = [line[:20].rstrip() for line in shown.out.splitlines()]
    for known in (*sd_ext.list_samplers(), *sd_ext.list_grids()):
        assert any(known.name == each or known.name.startswith(each) for each in begins if each)


def test_a_search_finds_by_name_alias_class_note_and_source(run):
    for text, found, missing in [
        ("dpmpp 2m", "dpm++ 2m", "heun++"),
        ("UniPC", "unipc 3 bh1", "karras"),
        ("SASolverScheduler", "sa-solver", "unipc"),
        ("arctan", "kl_optimal", "SAMPLERS"),
    ]:
        shown = run("samplers", "--search", text)
        assert found in shown.out and missing not in shown.out
    refused = run("samplers", "--search", "quantum")
    assert (refused.code, refused.out) == (2, "")
    assert "'quantum'" in refused.err


def test_every_option_of_the_u_net_is_listed_in_80_columns(run):
    from sd_ext.unets.variant import OPTIONS

    shown = run("unets")
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) < 80
    assert set(OPTIONS) <= {line.split(" ")[0] for line in shown.out.splitlines()}
    assert "apg_eta" in run("unets", "--search", "2410.02416").out
    refused = run("unets", "--search", "quantum")
    assert (refused.code, refused.out) == (2, "")
