from __future__ import annotations

import json

import pytest

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


def test_a_table_is_shown_and_written_for_a_model(run, tiny_pipeline_dir):
    from sd_ext.schedulers.interchange import from_json

    shown = run("samplers", "dpmpp 2m karras", "--steps", 4)
    assert (shown.code, shown.err) == (0, "") and shown.out.startswith("Table: 4 calls, x0 basis")
    written = run("samplers", "dpmpp 2m", "--grid", "karras", "--steps", 4, "--json", "--model", tiny_pipeline_dir)
    assert (written.code, written.err) == (0, "")
    config = json.loads((tiny_pipeline_dir / "scheduler" / "scheduler_config.json").read_text())
    made = from_json(written.out)
    scheduler = sd_ext.make_scheduler("dpm++ 2m karras", config)
    scheduler.set_timesteps(4)
    assert made.table.to_dict() == scheduler.table().to_dict() and made.sampler == "dpmpp 2m karras"


def test_the_list_is_written_for_programs(run):
    told = json.loads(run("samplers", "--json", "--search", "unipc").out)
    assert {"name": "unipc 3", "order": 4}.items() <= next(
        s for s in told["samplers"] if s["name"] == "unipc 3"
    ).items()
    assert len(json.loads(run("samplers", "--json").out)["grids"]) == len(sd_ext.list_grids())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("euler",), "--steps says how many"),
        (("--steps", "4"), "name it, such as"),
        (("eulr", "--steps", "4"), "euler"),
        (("euler", "--steps", "0"), "num_inference_steps must be 1 to 1000"),
        (("euler", "--steps", "4", "--grid", "kaRRs"), "karras"),
        (("euler", "--steps", "4", "--model", "nowhere"), "nowhere"),
        (("euler", "--search", "x"), "not both"),
    ],
)
def test_a_table_that_cannot_be_is_refused(run, arguments, says):
    refused = run("samplers", *arguments)
    assert (refused.code, refused.out) == (2, "") and says in refused.err and refused.err.count("\n") == 1
