"""A whole calibration of a tiny pipeline: what comes out, what an interrupted one ends with, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

import sd_ext
from sd_ext import whole
from sd_ext.attaching import ATTACHED
from sd_ext.calibration import Effort, Listener, Settings, calibrate
from sd_ext.calibration.pipeline import scheduler_of
from sd_ext.calibration.plan import predictions
from sd_ext.calibration.prompts import SHIPPED, lines_of, of_folder, of_words, repeated
from sd_ext.calibration.provenance import identity, state_of, weights_digest
from sd_ext.calibration.report.facts import limits
from sd_ext.calibration.report.pictures import of_report, sheets
from sd_ext.calibration.run import dealt, prepare
from sd_ext.calibration.store import check_free
from sd_ext.calibration.tables import known_table
from sd_ext.errors import InputError
from sd_ext.models.words import Thing, Words
from sd_ext.schedulers.calibrated import CalibratedScheduler, sample_of_weights

from ..conftest import build_tiny_pipeline
from ..schedulers.calibrated.family import fit as family_fit

PROMPTS = [
    f"{colour} {thing}" for colour in ("red", "blue", "old") for thing in ("fox", "boat", "key", "hat", "cup", "owl")
]
QUICK = {"calls": (2,), "guidance": (4.0, 6.0), "pairs": 2, "teacher_calls": 6, "effort": Effort(1, 1)}
"""Of the smallest kind; the second strength's fits have the levels, the first's take them."""


@pytest.fixture(scope="module", autouse=True)
def _few():
    """Of the known samplers two are enough to choose from, and of the pictures two to look at."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tables", "plan"):
            patch.setattr(f"sd_ext.calibration.{module}.KNOWN", ("dpm++ 2m trailing", "ddim trailing"))
        patch.setattr("sd_ext.calibration.report.pictures.COLUMNS", 2)
        yield


def build_small_pipeline():
    """The tiny pipeline with a U-Net of one level: what is tested here is not what it predicts."""
    pipe = build_tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=["CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D"],
            block_out_channels=[8],
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=32,
        )
    pipe.register_modules(unet=unet.eval())
    return pipe


class Heard(Listener):
    """Notes what it is told, and may interrupt.

    Args:
        until: the stage at whose beginning Ctrl-C is pressed.
    """

    def __init__(self, until: str = ""):
        self.stages, self.sentences, self.done, self.all, self.until = [], [], 0, 0, until

    def planned(self, predictions):
        self.all = predictions

    def stage(self, text):
        if text == self.until:
            raise KeyboardInterrupt
        self.stages.append(text)

    def made(self, predictions):
        self.done += predictions

    def told(self, sentence):
        self.sentences.append(sentence)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A calibration in a folder, what was heard of it, and its scheduler."""
    out, heard, pipe = tmp_path_factory.mktemp("calibrated") / "out", Heard(), build_small_pipeline()
    scheduler = calibrate(pipe, PROMPTS, out=out, listener=heard, **QUICK)
    return out, heard, scheduler, pipe


def content(out):
    """What a calibration wrote, without the seconds it took."""
    config = json.loads((out / "scheduler_config.json").read_text())
    assert config["calibration"]["provenance"].pop("seconds") >= 0
    return config


# ---- what comes out --------------------------------------------------------------------------------------------------


def test_every_fit_is_there(finished):
    _out, heard, scheduler, _ = finished
    assert [(f.calls, f.guidance) for f in scheduler.fitted.fits] == [
        (n, g) for n in QUICK["calls"] for g in (4.0, 6.0)
    ]
    for fit in scheduler.fitted.fits:
        assert {"fitted", "one_field", "known", "fitted_spread", "known_spread"} <= set(fit.errors)
        if fit.table is not None:
            assert fit.table.fields == 2 and fit.companion.fields == 1
    assert not heard.sentences
    assert heard.done == heard.all  # the bar ends full
    assert heard.stages[-1] == "report"


def test_the_levels_of_one_strength_are_those_of_the_others(finished):
    assert len({each.shape for each in finished[2].calibrated.finished}) == 1


def test_the_scheduler_loads_and_draws(finished):
    out, _, _, pipe = finished
    own = pipe.scheduler
    pipe.scheduler = CalibratedScheduler.from_pretrained(out)
    try:
        pipe.scheduler.attach(pipe)
        for guidance in (4.0, 5.0):
            made = pipe(
                "a fox", num_inference_steps=2, guidance_scale=guidance, output_type="latent", width=64, height=64
            )
            assert made.images.isfinite().all()
    finally:
        sd_ext.detach(pipe)
        pipe.scheduler = own


def test_the_report_stands_alone(finished):
    out = finished[0]
    page, text = (out / "report.html").read_text("utf-8"), (out / "report.md").read_text("utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", page)
    assert page.count("data:image/jpeg") == 2 and page.count("<svg") == 1
    for linked in re.findall(r"\]\(([^)]+)\)", text):
        assert (out / linked).stat().st_size > 0
    for said in ("Where it does not help", "guidance", "best known", "one field"):
        assert said in page and said in text
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "errors.svg", "guidance-4.jpg", "guidance-6.jpg", "report.html", "report.md",
        "scheduler_config.json",
    ]  # fmt: skip


def test_the_report_says_where_one_field_was_better_and_prompts_were_few(finished):
    calibrated = finished[2].calibrated
    one = calibrated.finished[0]
    two = family_fit(one.fit.guidance, calls=one.fit.calls)
    for alone, said in ((0.01, 1), (0.049, 0)):
        better = replace(two, errors={"fitted": 0.05, "known": 0.1, "one_field": alone, "fitted_spread": 1.0})
        told = limits(replace(calibrated, finished=(replace(one, fit=better),)))
        assert sum("one field alone came nearer" in sentence for sentence in told) == said
    assert not any("are also judged on" in sentence for sentence in limits(calibrated))
    told = limits(replace(calibrated, prompts=("a fox",) * 14))
    assert "1 prompt for 14 pairs: the prompts that are fitted to are also judged on, with other noise." in told


def test_the_pictures_of_a_report_are_planned(finished):
    _, _, scheduler, pipe = finished
    rows, told = [], []
    handle = pipe.unet.register_forward_hook(lambda module, given, output: rows.append(len(output[0])))
    sheets(pipe, scheduler.calibrated, told.append)
    handle.remove()
    assert sum(rows) // 2 == sum(told) == of_report(scheduler.calibrated.settings)


def test_where_it_was_made_is_not_told(finished):
    told = content(finished[0])["calibration"]["provenance"]
    assert told["prompts"] == 14 and told["pairs"] == 2 and told["size"] == [64, 64]
    assert len(told["model_digest"]) == 16 and told["lora"] is None
    assert "/" not in told["model"]


def test_the_pipeline_is_as_it_was(finished):
    pipe = finished[3]
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.unet not in ATTACHED


# ---- again, and after an interruption --------------------------------------------------------------------------------


def test_an_interrupted_calibration_ends_with_the_same_bytes(finished, tmp_path, monkeypatch):
    whole_run, _, _, pipe = finished
    monkeypatch.setattr(
        "sd_ext.calibration.report.sheets", lambda _, made, on_calls: on_calls(of_report(made.settings)) or []
    )
    out = tmp_path / "out"
    for stage in ("2 calls at guidance 6", "2 calls at guidance 4", "report"):
        with pytest.raises(KeyboardInterrupt):
            calibrate(pipe, PROMPTS, out=out, listener=Heard(stage), **QUICK)
        assert not (out / "scheduler_config.json").exists()
    last = Heard()
    calibrate(pipe, PROMPTS, out=out, listener=last, **QUICK)
    assert last.stages == ["report"] and last.done == last.all
    assert content(out) == content(whole_run)
    assert (out / "errors.svg").read_bytes() == (whole_run / "errors.svg").read_bytes()


def test_another_model_does_not_go_on(finished, tmp_path):
    """What fits depend on, and no setting says: the process, the words' encoder, the strength of a LoRA."""
    pipe, out = finished[3], tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, PROMPTS, out=out, listener=Heard("2 calls at guidance 4"), **QUICK)

    def other(change):
        another = build_small_pipeline()
        change(another)
        return another

    def reads_anew(another):
        with torch.no_grad():
            next(another.text_encoder.parameters()).mul_(1.5)

    changes = {
        "scheduler_digest": lambda another: setattr(
            another, "scheduler", type(another.scheduler).from_config(another.scheduler.config, beta_end=0.02)
        ),
        "text_digest": reads_anew,
    }
    for name, change in changes.items():
        with pytest.raises(InputError, match=f"unfinished calibration of another {name}"):
            calibrate(other(change), PROMPTS, out=out, **QUICK)
    with pytest.raises(InputError, match="another lora"):
        calibrate(pipe, PROMPTS, out=out, lora={"style": 0.3}, **QUICK)


def test_a_model_is_named_without_its_place(finished):
    problem, every = prepare(finished[3], PROMPTS, Settings(**QUICK), None, Listener())
    told = identity(problem, Settings(**QUICK), every, None, "/home/me/models/sdx")
    assert told["model"] == "sdx"


def test_offloaded_weights_are_read():
    from accelerate import cpu_offload

    def read(seed):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3))
        plain = weights_digest(state_of(network)), sample_of_weights(network)
        cpu_offload(network, execution_device=torch.device("cpu"))
        assert all(weight.is_meta for weight in network.parameters())
        state = state_of(network)
        assert (weights_digest(state), sample_of_weights(network, state)) == plain and plain[1]
        return plain[0]

    assert read(0) != read(1)


def test_auto_is_auto_and_the_models_options_stay(finished):
    """What a calibration compares with is what a user gets, and so is what makes runs that were not fitted."""
    pipe, scheduler = finished[3], finished[2]
    for guidance, calls in ((1.0, 6), (3.0, 5), (7.5, 8)):
        own = sd_ext.make_scheduler("auto", pipe.scheduler.config, guidance_scale=guidance)
        own.set_timesteps(calls)
        for config in (scheduler_of(pipe).config, scheduler.config):
            table = known_table("auto", calls, config, guidance)
            assert table is not None and table.to_dict() == own.table().to_dict()
    for name in ("euler", "ddim", "heun", "unipc"):
        runs = []
        for config in (pipe.scheduler.config, scheduler.config):
            made = sd_ext.make_scheduler(name, config)
            made.set_timesteps(5)
            runs.append(made.timesteps.tolist())
        assert runs[0] == runs[1], name


def test_an_export_does_not_replace_a_calibration(finished, tmp_path):
    finished[2].save_pretrained(tmp_path / "mine")
    scheduler = CalibratedScheduler.from_pretrained(tmp_path / "mine", guidance_scale=4.0)
    before = (tmp_path / "mine" / "scheduler_config.json").read_bytes()
    with pytest.raises(InputError, match="mine holds a calibration, which an export would replace"):
        scheduler.export(tmp_path / "mine")
    assert (tmp_path / "mine" / "scheduler_config.json").read_bytes() == before
    for counts in ("x", 4.5, 0, True, (2, "a")):
        with pytest.raises(InputError, match="num_inference_steps must be whole numbers from 1, or None"):
            scheduler.export(tmp_path / "other", counts)
    scheduler.export(tmp_path / "other", 2.0)


def test_what_lies_in_the_folder_is_not_overwritten(finished, tmp_path):
    whole_run, _, _, pipe = finished
    with pytest.raises(InputError, match="holds a finished calibration; give another folder"):
        calibrate(pipe, PROMPTS, out=whole_run, **QUICK)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"holds letter\.txt and no calibration"):
        calibrate(pipe, PROMPTS, out=tmp_path, **QUICK)
    with pytest.raises(InputError, match="is no folder"):
        calibrate(pipe, PROMPTS, out=tmp_path / "letter.txt", **QUICK)
    (tmp_path / "killed" / "unfinished").mkdir(parents=True)  # before anything was written there
    check_free(tmp_path / "killed")
    out = tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, PROMPTS, out=out, listener=Heard("teacher at guidance 6"), **QUICK)
    with pytest.raises(InputError, match=r"unfinished calibration of another pairs, another prompts, .*another seed"):
        calibrate(pipe, PROMPTS, out=out, **{**QUICK, "pairs": 3, "seed": 7})
    with pytest.raises(InputError, match="another prompts_digest"):
        calibrate(pipe, [*PROMPTS[1:], "a whale"], out=out, **QUICK)
    damaged = out / "unfinished" / "2-6.json"
    whole.write_text(damaged, "{")
    with pytest.raises(InputError, match=r"2-6.json is not valid JSON"):
        calibrate(pipe, PROMPTS, out=out, **QUICK)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calls": ()}, "at least one number of calls"),
        ({"calls": (1, 5)}, "1 calls cannot be fitted; choose 2 to 50"),
        ({"calls": (5, 51)}, "51 calls cannot be fitted"),
        ({"guidance": (0.5,)}, "guidance 0.5 cannot be fitted"),
        ({"guidance": (float("nan"),)}, r"guidance\[0\] must be a number, got nan"),
        ({"guidance": (3.0000001, 3.0000002)}, "the same to six digits"),
        ({"guidance": 7.5}, "guidance must be a list of numbers, got 7.5"),
        ({"calls": 5}, "calls must be a list of whole numbers, got 5"),
        ({"calls": (4.5,)}, r"calls\[0\] must be a whole number, got 4.5"),
        ({"pairs": "many"}, "pairs must be a whole number, got 'many'"),
        ({"seed": -1}, "seed -1 cannot be"),
        ({"teacher": None}, "teacher must be text"),
        ({"effort": 3}, "effort must be an Effort, got 3"),
        ({"guidance": (1.0, 5.0), "fields": 2}, "guidance 1 has no second field"),
        ({"pairs": 1}, "1 pairs are too few"),
        ({"calls": (40,), "teacher_calls": 72}, "choose at least 80"),
        ({"fields": 3}, "1 field or 2"),
        ({"effort": Effort(-1, 1)}, "-1 derivatives"),
        ({"batch": 0}, "a batch of 0"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(InputError, match=said):
        Settings(**options)


def test_inputs_that_cannot_be(tiny_pipeline):
    for prompts, said in (([], "no prompts"), (["fox", " "], "a prompt is empty")):
        with pytest.raises(InputError, match=said):
            calibrate(tiny_pipeline, prompts, **QUICK)
    for prompts, size, said in (
        ("a fox", None, "prompts must be a list of texts or none, got 'a fox'"),
        ([1], None, r"prompts\[0\] must be text"),
        (PROMPTS, 64, "size must be a list of 2"),
        (PROMPTS, (0, 64), "size must be width and height in pixels"),
        (PROMPTS, (10**6, 10**6), "1000000 x 1000000 pixels cannot be fitted to"),
    ):
        with pytest.raises(InputError, match=said):
            calibrate(tiny_pipeline, prompts, size=size, **QUICK)
    for wrong, said in (
        ({"out": 5}, "out must be the path of a folder"),
        ({"model": 5}, "model must be text"),
        ({"lora": 5}, "lora must be"),
        ({"lora": {"a": "b"}}, r"lora\['?a'?\]|lora.a|must be a number"),
        ({"settings": {}}, "settings must be a Settings"),
    ):
        with pytest.raises(InputError, match=said):
            calibrate(tiny_pipeline, PROMPTS, **{**QUICK, **wrong})
    for teacher, said in (("dpm++ 9m", "did you mean"), ("euler a", "adds noise")):  # before anything is drawn
        with pytest.raises(InputError, match=said):
            prepare(tiny_pipeline, PROMPTS, Settings(**{**QUICK, "teacher": teacher}), None, Listener())
    with pytest.raises(InputError, match="no option colour"):
        calibrate(tiny_pipeline, PROMPTS, colour="red")
    with pytest.raises(InputError, match=r"2 pairs of 64 numbers are too few for the .* choose at least 5 pairs"):
        Settings(pairs=2, calls=(10,), guidance=(4.0,)).check_numbers(64)
    Settings(pairs=5, calls=(10,), guidance=(4.0,)).check_numbers(64)


def test_nothing_begins_where_epsilon_says_nothing(tiny_pipeline, tmp_path):
    options = {"prediction_type": "epsilon", "rescale_betas_zero_snr": True}
    for spacing in ("leading", "trailing"):
        own = tiny_pipeline.scheduler.config
        tiny_pipeline.scheduler = DDIMScheduler.from_config(own, **options, timestep_spacing=spacing)
        with pytest.raises(InputError, match="rescale_betas_zero_snr=False"):
            calibrate(tiny_pipeline, PROMPTS, out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_no_number_is_refused(tiny_pipeline, monkeypatch):
    with torch.no_grad():
        weight = tiny_pipeline.unet.conv_out.bias
        own = weight.clone()
        weight[0] = torch.inf
    try:
        with pytest.raises(InputError, match="pictures are not numbers for 14 of 14 pairs at guidance 4"):
            calibrate(tiny_pipeline, PROMPTS, **{**QUICK, "guidance": (4.0,)})
    finally:
        with torch.no_grad():
            weight.copy_(own)


# ---- the plan, and prompts -------------------------------------------------------------------------------------------


def test_the_plan_is_about_what_is_made(finished):
    _, _, scheduler, pipe = finished
    settings = scheduler.calibrated.settings
    problem, _ = prepare(pipe, PROMPTS, settings, None, Listener())
    made = sum(each.predictions for each in scheduler.calibrated.finished) + 2 * 6 * settings.sets.pairs
    assert 0.4 * predictions(problem, settings) < made <= 1.2 * predictions(problem, settings)


def test_few_prompts_are_used_again_and_that_is_said(tiny_pipeline):
    heard = Heard()
    prepare(tiny_pipeline, PROMPTS[:3], Settings(pairs=2), None, heard)
    sentence = "3 prompts for 14 pairs: the prompts that are fitted to are also judged on, with other noise"
    assert heard.sentences == [sentence]
    assert repeated(PROMPTS) == "" and repeated(["a"] * 4).startswith("1 prompt for 4 pairs: ")
    assert sorted(set(dealt(PROMPTS[:3], 14, 0))) == sorted(PROMPTS[:3])
    assert dealt(PROMPTS, 18, 0) != dealt(PROMPTS, 18, 1) and sorted(dealt(PROMPTS, 18, 5)) == sorted(PROMPTS)


def test_prompts_for_those_who_have_none(tmp_path):
    shipped = lines_of(SHIPPED)
    assert len(shipped) > 300 and len(set(shipped)) == len(shipped)
    assert of_folder(tmp_path / "nowhere") == shipped == of_folder(tmp_path)
    words = Words(
        things={"animals": [Thing((name,)) for name in "abcd"]}, colours={"red": ["red"]}, styles={"flat": ["flat"]}
    )
    assert of_words(words) == ["a", "red b", "flat c", "d"]
    (tmp_path / "words.json").write_text('{"things": {"animals": [{"names": ["cat"]}]}}')
    assert of_folder(tmp_path) == ["cat"]
    (tmp_path / "mine.txt").write_text("# mine\n\n a fox \nan owl\n")
    assert lines_of(tmp_path / "mine.txt") == ["a fox", "an owl"]
