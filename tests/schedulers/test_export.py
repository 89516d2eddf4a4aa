"""Exported samplers: the same latents to the bit, without this package."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.assemble import MODULES, SOURCE, text_of
from sd_ext.schedulers.export import COUNTS, _of_history, _run, export, exported
from sd_ext.schedulers.stored import MOST_CALLS

from .conftest import SD
from .over import NAMES, WITNESSES, over
from .random_tables import RandomScheduler
from .test_engine import OUTPUT

FEW = (1, 2, 7, 16)


def note(scheduler):
    """The board that a scheduler reads: the package's, or that of its own file."""
    return type(scheduler)._second.__globals__["BOARD"]


def run(scheduler, n, begin=0, announce=True, dtype=torch.float32, channels=4):
    """A whole run with a made-up network: the latent, and each call's prediction of x0."""
    generator = torch.Generator().manual_seed(n + begin)
    scheduler.set_timesteps(n)
    if announce:
        scheduler.set_begin_index(begin)
    x = torch.randn(2, channels, 4, 4, generator=generator).to(dtype) * scheduler.init_noise_sigma
    x0 = []
    for t in scheduler.timesteps[begin:]:
        note(scheduler).write(t, torch.tanh(0.7 * x), alone=True)  # for tables of two fields
        out = scheduler.step(torch.tanh(1.5 * x), t, x, generator=generator)
        x = out.prev_sample
        x0.append(out.pred_original_sample)
    return x, torch.stack(x0)


def assert_same_runs(ours, theirs, counts=FEW, **how):
    for n in counts:
        for begin in {0, 1 % n, n // 2, n - 1}:
            a, b = run(ours, n, begin, **how), run(theirs, n, begin, **how)
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]), (n, begin)
            assert a[0].dtype == b[0].dtype
            assert torch.equal(ours.timesteps, theirs.timesteps) and ours.timesteps.dtype == theirs.timesteps.dtype
            assert torch.equal(ours.sigmas, theirs.sigmas)
            assert ours.init_noise_sigma == theirs.init_noise_sigma
            assert (ours.begin_index, ours.step_index) == (theirs.begin_index, theirs.step_index)
            assert ours.num_inference_steps == theirs.num_inference_steps == n


@over("name", NAMES)
@over("counts", [(1, 8)], full=[(1, 2, 3, 5, 8, 13)])
def test_stored_numbers_are_the_tables(counts, name, exported_file):
    """From every start, exactly, after a way through JSON: by the engine's law, so are the latents."""
    scheduler = sd_ext.make_scheduler(name, SD)
    for calls in counts:
        scheduler.set_timesteps(calls)
        run = json.loads(json.dumps(_run(scheduler)))
        exported_file.check_run(str(calls), run, scheduler.config["prediction_type"])
        for begin in range(calls):
            table, stored = scheduler.table(begin), exported_file.StoredTable(run, begin)
            alpha, sigma, rows = stored.numbers()
            unread = table.rows.shape[2] - len(rows[0][0])
            assert (stored.basis, stored.fields) == (table.basis, table.fields)
            if table.fields > 1:
                table, unread = _of_history(table, stored.history), 0
            assert not table.rows[:, :, -1 - unread : -1].any()
            assert (alpha, sigma) == table.numbers()[:2]
            np.testing.assert_array_equal(np.array(rows)[:, :, :-1], table.rows[:, :, : -1 - unread])
            np.testing.assert_array_equal(np.array(rows)[:, :, -1], table.rows[:, :, -1])


@over("prediction_type", ["epsilon"], full=["epsilon", "v_prediction"])
@over("name", WITNESSES, full=NAMES)
def test_samplers_to_the_bit(name, prediction_type, exported_file, tmp_path):
    counts = (1, 2, 16)
    ours = sd_ext.make_scheduler(name, {**SD, "prediction_type": prediction_type})
    theirs = exported_file.ExportedScheduler.from_pretrained(export(ours, tmp_path / "scheduler", counts))
    assert theirs.init_noise_sigma == ours.init_noise_sigma
    assert_same_runs(ours, theirs, counts)


CASES = {
    "fractional timesteps": ("dpm++ 2m", {"grid": "karras"}),
    "clipping": ("dpm++ 3m", {"clip_sample": True, "clip_sample_range": 0.8}),
    "clipping, eps basis": ("plms", {"clip_sample": True, "clip_sample_range": 0.8}),
    "thresholding": ("dpm++ 2m sde", {"thresholding": True, "sample_max_value": 1.5}),
    "thresholding, least limit": ("ddim", {"thresholding": True, "sample_max_value": 0.5}),
    "zero terminal SNR": ("dpm-solver 2m", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    "flow matching": ("dpm++ 2m", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
    "network predicts x0": ("heun", {"prediction_type": "sample"}),
    "eta": ("ddim", {"eta": 0.5}),
    "an end that is not clean": ("euler a", {"final_sigmas_type": "sigma_min"}),
    "large fixed variance": ("ddpm", {"variance_type": "fixed_large"}),
}


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@over("case", CASES)
@over("counts, dtypes", [((1, 7), DTYPES[:1])], full=[(FEW, DTYPES)])
def test_options_to_the_bit(counts, dtypes, case, exported_file, tmp_path):
    name, options = CASES[case]
    ours = sd_ext.make_scheduler(name, {**SD, "steps_offset": 1}, **options)
    theirs = exported_file.ExportedScheduler.from_pretrained(export(ours, tmp_path / "scheduler", counts))
    for dtype in dtypes:
        assert_same_runs(ours, theirs, counts, dtype=dtype)
    assert_same_runs(ours, theirs, counts, announce=False)


@over("basis", ["x0", "eps"])
@over("prediction_type", OUTPUT)
@over("clip_sample", [False, True])
@over("seed, dtype", [(0, torch.float32), (1, torch.float16)], full=[*enumerate(DTYPES), *enumerate(DTYPES, 4)])
def test_random_tables_to_the_bit(seed, dtype, clip_sample, prediction_type, basis, exported_file):
    """Every slot goes into every output that may have it; the exported file beside the modules it is made of."""
    options = {"basis": basis, "prediction_type": prediction_type, "clip_sample": clip_sample}
    ours = RandomScheduler(**options, seed=seed)
    theirs = exported_file.ExportedScheduler(**read(exported(ours, 7)))
    assert_same_runs(ours, theirs, [7], dtype=dtype)


@over("case", ["fractional timesteps", "zero terminal SNR", "flow matching"])
def test_the_forward_process_to_the_bit(case, exported_file):
    name, options = CASES[case]
    ours = sd_ext.make_scheduler(name, SD, **options)
    theirs = exported_file.ExportedScheduler(**read(exported(ours, 3)))
    x0, noise = torch.randn(2, 4, 4, 4, 4).unbind()
    for t in (torch.tensor([3, 999, 500, 0]), torch.tensor([3.25, 998.5, 0.0, 12.0]), torch.tensor([998.9])):
        assert torch.equal(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t))
        assert torch.equal(ours.get_velocity(x0, noise, t), theirs.get_velocity(x0, noise, t))
        half = theirs.add_noise(x0.half(), noise.half(), t)
        assert half.dtype == torch.float16 and torch.equal(ours.add_noise(x0.half(), noise.half(), t), half)
    for name in ("alphas_cumprod", "alphas", "betas"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert len(ours) == len(theirs)


# ---- pipelines, where this package cannot be imported ----------------------------------------------------------------

PIPELINES = {
    "multistep": ("dpm++ 2m karras", {}),
    "two-stage and stochastic": ("dpm++ sde", {}),
    "ddim": ("ddim", {"eta": 0.5}),
}

ELSEWHERE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sd_ext":
            raise ImportError("there is no sd_ext here")
sys.meta_path.insert(0, Absent())
from pathlib import Path
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline

def draw(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe, *pictures(pipe, StableDiffusionImg2ImgPipeline.from_pipe(pipe))

{pictures}

root, results = Path(sys.argv[1]), {{}}
for folder in sorted(root.iterdir()):
    pipe, *results[folder.name] = draw(folder)
pipe.save_pretrained(root.parent / "again")
results["again"] = draw(root.parent / "again")[1:]
try:
    DiffusionPipeline.from_pretrained(folder)
except ValueError as error:
    results["refusal"] = str(error)
assert "sd_ext" not in sys.modules and not [name for name in sys.modules if name.startswith("sd_ext.")]
torch.save(results, sys.argv[2])
"""

PICTURES = """
def pictures(text, image):
    common = dict(output_type="latent", num_inference_steps=7)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = text("a b", generator=torch.Generator().manual_seed(1), **common).images
    image.set_progress_bar_config(disable=True)
    half = image("a", image=picture, strength=0.6, generator=torch.Generator().manual_seed(2), **common).images
    return whole, half
"""


def test_pictures_where_this_package_is_not(tiny_pipeline, tiny_pipeline_dir, tmp_path, fresh):
    namespace = {"torch": torch}
    exec(PICTURES, namespace)
    expected = {}
    for case, (name, options) in PIPELINES.items():
        tiny_pipeline.scheduler = sd_ext.make_scheduler(name, tiny_pipeline.scheduler.config, **options)
        folder = tmp_path / "pipelines" / case
        shutil.copytree(tiny_pipeline_dir, folder)
        export(tiny_pipeline.scheduler, folder / "scheduler", range(1, 9))
        index = json.loads((folder / "model_index.json").read_text())
        assert index["scheduler"] == ["exported_scheduler", "ExportedScheduler"]
        image = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipeline)
        expected[case] = namespace["pictures"](tiny_pipeline, image)
    done = fresh(ELSEWHERE.format(pictures=PICTURES), tmp_path / "pipelines", tmp_path / "results.pt")
    assert done.returncode == 0, done.stderr
    results = torch.load(tmp_path / "results.pt")
    assert "trust_remote_code=True" in results.pop("refusal")
    expected["again"] = expected[sorted(PIPELINES)[-1]]
    assert set(results) == set(expected)
    for case, pictures in expected.items():
        for a, b in zip(pictures, results[case], strict=True):
            assert torch.equal(a, b), case


# ---- what an export holds --------------------------------------------------------------------------------------------


def test_the_file_imports_nothing_but_torch_diffusers_and_python(tmp_path):
    folder = export(sd_ext.make_scheduler("ddim"), tmp_path / "scheduler", 2)
    assert sorted(path.name for path in folder.iterdir()) == ["exported_scheduler.py", "scheduler_config.json"]
    found = set()
    for node in ast.walk(ast.parse((folder / "exported_scheduler.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            found.add(node.module.split(".")[0])
    assert found - set(sys.stdlib_module_names) == {"torch", "diffusers"}


def test_the_file_is_made_of_the_modules_that_run(tmp_path):
    """Each once, word for word but for their imports, without a name that two of them define; and it is clean."""
    text = SOURCE.decode()
    whole = ast.parse(text)
    present = {ast.unparse(node) for node in whole.body}
    for module in MODULES:
        tree = ast.parse(text_of(module))
        parts = [node for node in tree.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)]
        assert parts and {ast.unparse(part) for part in parts} <= present
    named = (node for node in whole.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    assert max(Counter(node.name for node in named).values()) == 1
    (tmp_path / "file.py").write_text(text)
    for check in (["check", "--line-length=120"], ["format", "--check", "--line-length=120"]):
        command = [sys.executable, "-m", "ruff", *check, "--isolated", "--no-cache", str(tmp_path / "file.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_file_needs_no_place_among_the_modules(tmp_path):
    """Whoever runs it may do so without registering it, as `exec` does."""
    (tmp_path / "file.py").write_bytes(SOURCE)
    names = {"__name__": "alone", "__file__": str(tmp_path / "file.py")}
    exec(compile(SOURCE, "file.py", "exec"), names)
    assert_same_runs(sd_ext.make_scheduler("dpm++ 2m"), names["ExportedScheduler"](**read(exported_2m())), [7])


def exported_2m():
    return exported(sd_ext.make_scheduler("dpm++ 2m"), 7)


def test_the_format_of_published_numbers_stays(exported_file):
    """By hand: x0 and two calls of its basis, the second with the first's prediction and the stash."""
    run = {
        "basis": "x0", "init_noise_sigma": 0.5, "timesteps": [1, 0], "sigmas": [None, 0.75, 0],
        "alpha": [0.0, 0.8], "sigma": [1.0, 0.6],
        "calls": [[[0.25, 0, 0, 0.5], [1]], [[0.5, 0.125, 2, 0.25, -0.5]]],
        "starts": {"1": {"1": [[0.5, 0, 0, 1]]}},
    }  # fmt: skip
    trained = {"alpha": [1.0, 0.5], "sigma": [0.0, 0.75**0.5]}
    scheduler = exported_file.ExportedScheduler({"2": run}, trained, "sample", 2)
    assert scheduler.timesteps.tolist() == [1, 0]
    scheduler.set_timesteps(2)
    assert scheduler.init_noise_sigma == 0.5 and scheduler.sigmas.tolist() == [float("inf"), 0.75, 0.0]
    x, first, second, noise = torch.randn(4, 2, 3, dtype=torch.float64).unbind()
    middle = scheduler.step(first, scheduler.timesteps[0], x).prev_sample
    torch.testing.assert_close(middle, 0.25 * x + 0.5 * first)
    end = scheduler.step(second, scheduler.timesteps[1], middle, variance_noise=noise).prev_sample
    torch.testing.assert_close(end, 0.5 * middle + 0.125 * x + 2 * noise + 0.25 * second - 0.5 * first)
    scheduler.set_timesteps(2)
    late = scheduler.step(second, scheduler.timesteps[1], middle, return_dict=False)[0]
    torch.testing.assert_close(late, 0.5 * middle + second)


def test_the_default_export_covers_what_pipelines_ask_for_and_stays_small(tmp_path):
    folder = export(sd_ext.make_scheduler("plms"), tmp_path / "scheduler")
    config = json.loads((folder / "scheduler_config.json").read_text())
    assert [int(n) for n in config["runs"]] == list(COUNTS) and COUNTS[-1] == 50
    assert (folder / "scheduler_config.json").stat().st_size < 1_000_000
    assert max(map(len, (folder / "scheduler_config.json").read_text().splitlines())) < 60_000


def test_save_pretrained_keeps_the_folder_loadable_and_equal(exported_file, tmp_path):
    first = export(sd_ext.make_scheduler("euler a"), tmp_path / "first", FEW)
    loaded = exported_file.ExportedScheduler.from_pretrained(first)
    loaded.save_pretrained(tmp_path / "second")
    for name in ("scheduler_config.json", "exported_scheduler.py"):
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes()
    for again in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), type(loaded).from_config(loaded.config)):
        assert_same_runs(loaded, again, counts=[7])
        again.save_pretrained(tmp_path / "third")
        assert (tmp_path / "third/scheduler_config.json").read_text() == (first / "scheduler_config.json").read_text()


def test_only_the_entry_of_its_own_component_changes(tiny_pipeline_dir, tmp_path):
    shutil.copytree(tiny_pipeline_dir, tmp_path / "pipe")
    index = tmp_path / "pipe" / "model_index.json"
    before = json.loads(index.read_text())
    export(sd_ext.make_scheduler("ddim"), tmp_path / "pipe" / "another", 2)
    assert json.loads(index.read_text()) == before
    export(sd_ext.make_scheduler("ddim"), tmp_path / "pipe" / "scheduler", 2)
    assert json.loads(index.read_text()) == {**before, "scheduler": ["exported_scheduler", "ExportedScheduler"]}
    index.write_text("[")
    with pytest.raises(InputError, match=r"model_index.json is not valid JSON"):
        export(sd_ext.make_scheduler("ddim"), tmp_path / "pipe" / "scheduler", 2)


def test_other_samplers_can_take_its_place(exported_file, tmp_path, caplog):
    ours = sd_ext.make_scheduler("dpm++ 2m", SD, prediction_type="v_prediction", steps_offset=1)
    theirs = exported_file.ExportedScheduler.from_pretrained(export(ours, tmp_path / "scheduler", 4))
    for other in (
        diffusers.EulerDiscreteScheduler.from_config(theirs.config),
        sd_ext.make_scheduler("heun", theirs.config),
    ):
        assert all(other.config[key] == ours.config[key] for key in (*SD, "prediction_type", "steps_offset"))
    assert len(str(theirs)) + len(str(theirs.config)) + len(caplog.text) < 10_000, "the tables are not to be printed"


def test_a_run_of_ones_own(exported_file, tmp_path):
    ours = sd_ext.make_scheduler("dpm++ 2m")
    with pytest.raises(InputError, match="call set_timesteps"):
        exported(ours, None)
    chosen = [999, 700.5, 300, 20]
    ours.set_timesteps(timesteps=chosen)
    ours.set_begin_index(1)
    theirs = exported_file.ExportedScheduler.from_pretrained(export(ours, tmp_path / "scheduler", None))
    assert ours.begin_index == 1 and ours.step_index is None, "exporting leaves the scheduler as it is"
    x = torch.randn(1, 4, 4, 4)
    ours.set_begin_index(0)
    theirs.set_timesteps(4)
    for t in ours.timesteps:
        assert torch.equal(ours.step(x.tanh(), t, x).prev_sample, theirs.step(x.tanh(), t, x).prev_sample)
    for same in (
        {"timesteps": chosen},
        {"timesteps": chosen, "num_inference_steps": 4},
        {"sigmas": ours.sigmas},
        {"sigmas": ours.sigmas[:-1].tolist()},
    ):
        theirs.set_timesteps(**same)
        assert torch.equal(theirs.timesteps, ours.timesteps)
    for other in (
        {"timesteps": [999, 700, 300, 20]},
        {"timesteps": chosen, "num_inference_steps": 3},
        {"timesteps": [999]},
        {"sigmas": [9.0, 5.0, 2.0, 1.0]},
    ):
        with pytest.raises(ValueError, match=r"exported for these numbers of network calls only: 4$"):
            theirs.set_timesteps(**other)


# ---- the interface ---------------------------------------------------------------------------------------------------


def test_each_thread_has_its_own_run():
    one = exported(sd_ext.make_scheduler("dpm++ 3m"), FEW)
    expected, alone = run(one, 7)[0], run(one, 2)[0]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    one.set_timesteps(7)
    with ThreadPoolExecutor(1) as other:
        for t in one.timesteps:
            x = one.step(torch.tanh(1.5 * x), t, x).prev_sample
            assert torch.equal(other.submit(run, one, 2).result()[0], alone)
            assert one.num_inference_steps == 7
    assert torch.equal(x, expected)


@over("name", ["dpm++ 3m", "heun"])
def test_a_run_can_branch(name):
    """As text-to-video pipelines do."""
    scheduler = exported(sd_ext.make_scheduler(name), 6)
    expected = run(scheduler, 6)[0]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(6)) * scheduler.init_noise_sigma
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(torch.tanh(1.5 * x), t, x).prev_sample
    branch, state = copy.deepcopy(scheduler), copy.deepcopy(scheduler.__dict__)
    for start in (lambda: branch, lambda: scheduler, lambda: scheduler.__dict__.update(state) or scheduler):
        one, y = start(), x
        for t in scheduler.timesteps[3:]:
            y = one.step(torch.tanh(1.5 * y), t, y).prev_sample
        assert torch.equal(y, expected)


@over("name", ["dpm++ 2m sde karras", "heun"])
def test_a_step_never_reads_a_device(name):
    """Tensors on "meta" have no values to read."""
    scheduler = exported(sd_ext.make_scheduler(name, SD, thresholding=True), 6)
    scheduler.set_timesteps(6, device="meta")
    x = torch.zeros(2, 4, 8, 8, device="meta")
    for t in scheduler.timesteps[2:]:
        x = scheduler.step(x, t, x).prev_sample
    assert scheduler.step_index == 6


def test_noise_of_ones_own_and_a_network_that_also_gives_a_variance():
    ours = sd_ext.make_scheduler("euler a")
    theirs = exported(ours, 3)
    x, noise = torch.randn(2, 1, 4, 4, 4).unbind()
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(3)
        t = scheduler.timesteps[0]
        results.append(scheduler.step(torch.cat([x, noise], 1), t, x, variance_noise=noise, return_dict=False)[0])
    assert torch.equal(*results)


def test_runtime_errors_say_what_is_allowed():
    scheduler = exported(sd_ext.make_scheduler("ddim", SD), (2, 4))
    x = torch.zeros(1, 4, 4, 4)
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(x, 999, x)
    with pytest.raises(ValueError, match=r"num_inference_steps=3: .* only: 2, 4$"):
        scheduler.set_timesteps(3)
    for arguments in ({}, {"timesteps": [1], "sigmas": [1]}):
        with pytest.raises(ValueError, match="pass one of"):
            scheduler.set_timesteps(**arguments)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="0 to 2, got 3"):
        scheduler.set_begin_index(3)
    t = scheduler.timesteps[0]
    with pytest.raises(ValueError, match="differ in shape"):
        scheduler.step(x[:, :3], t, x)
    with pytest.raises(ValueError, match="not one of this run's timesteps"):
        scheduler.step(x, 123, x)
    with pytest.raises(ValueError, match=r"exported for eta=0\.0"):
        scheduler.step(x, t, x, eta=0.3)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x, eta=0.0)
    scheduler.set_begin_index(2)
    with pytest.raises(ValueError, match="calls are made"):
        scheduler.step(x, t, x)
    ancestral = exported(sd_ext.make_scheduler("euler a"), 2)
    ancestral.set_timesteps(2)
    with pytest.raises(ValueError, match="variance_noise must be"):
        ancestral.step(x, ancestral.timesteps[0], x, variance_noise=x[:, :3])
    ancestral.step(x, ancestral.timesteps[0], x, eta=0.3)  # pipelines pass it to whoever has the argument


def read(scheduler) -> dict:
    """Constructor arguments, as from a file."""
    config = json.loads(scheduler.to_json_string())
    return {k: v for k, v in config.items() if k in type(scheduler)._get_init_keys(type(scheduler))}


def set_at(config, path, value):
    for key in path[:-1]:
        config = config[key]
    if value is None:
        del config[path[-1]]
    else:
        config[path[-1]] = value


@over(
    "path, value, message",
    [
        (["runs"], {}, "dictionaries with entries"),
        (["runs"], None, "dictionaries with entries"),
        (["trained"], [], "dictionaries with entries"),
        (["trained", "alpha"], [1.0], r"trained.alpha must be a list of 1000"),
        (["trained", "sigma", 3], float("nan"), "trained.sigma must hold finite"),
        (["prediction_type"], "colour", "prediction_type must be one of"),
        (["runs", "x"], {}, r"not a run"),
        (["runs", "4", "basis"], "x1", r"runs\[4\].basis"),
        (["runs", "4", "timesteps"], [3, 2, 1], r"runs\[4\].timesteps must be a list of 4"),
        (["runs", "4", "timesteps"], None, r"runs\[4\].timesteps must be a list of 4"),
        (["runs", "4", "sigmas", 0], "9", r"runs\[4\].sigmas must hold finite"),
        (["runs", "4", "sigma", 1], 0, r"runs\[4\].sigma must be positive"),
        (["runs", "4", "alpha", 1], 0, r"runs\[4\].alpha is too small"),
        (["runs", "4", "init_noise_sigma"], float("inf"), "init_noise_sigma must hold finite"),
        (["runs", "4", "calls"], [[[1.0]]], r"runs\[4\].calls must be a list of 4"),
        (["runs", "4", "calls", 0], [], "call 0: expected one or two lists"),
        (["runs", "4", "calls", 1, 0], 3, "call 1 must be a list"),
        (["runs", "4", "calls", 1, 0, 0], float("inf"), "call 1 must hold finite numbers only"),
        (["runs", "4", "calls", 1, 0, 0], 10**400, "call 1 must hold finite numbers only"),
        (["runs", "4", "calls", 1, 0, 0], True, "call 1 must hold finite numbers only"),
        (["runs", "4", "calls", 1, 0], [1, 0, 0, 1, 1, 1], "call 1: reads before the start at 0"),
        (["runs", "4", "starts", "2"], {}, "call 2: reads before the start at 2"),
        (["runs", "4", "calls", 0, 0], [1, 0.5], "call 0: reads an empty stash"),
        (["runs", "4", "calls", 2, 0], [1, 0.5], "call 2: reads an empty stash"),
        (["runs", "4", "starts"], [], "not a run"),
        (["runs", "4", "starts", "1"], [], "starts must hold calls"),
        (["runs", "4", "starts", "1", "1"], [[float("nan")]], "call 1 must hold finite numbers only"),
        (["runs", "4", "starts", "1", "0"], [[1]], "call 0: not a call of a run that starts at 1"),
        (["runs", "4", "starts", "1", "4"], [[1]], "call 4: not a call of a run that starts at 1"),
        (["runs", "4", "starts", "one"], {"1": [[1]]}, "call 1: not a call of a run that starts at one"),
        (["runs", "4", "starts", "0"], {"0": [[1, 2]]}, "call 0: reads an empty stash"),
        (["runs", "4", "sigmas"], "12345", r"runs\[4\].sigmas must be a list of 5"),
        (["runs", str(MOST_CALLS + 1)], {"starts": {}}, "more than 4000 calls"),
        (["runs", 4], {"starts": {}}, r"runs\[4\] is not a run"),
        (["num_train_timesteps"], "1000", "num_train_timesteps must be a whole number"),
        (["sample_max_value"], "1", "settings must hold finite numbers"),
        (["clip_sample"], "false", "switches must be true or false"),
    ],
)
def test_tables_are_checked_on_load(path, value, message):
    scheduler = exported(sd_ext.make_scheduler("dpm++ 2m", SD), 4)
    config = read(scheduler)
    set_at(config, path, value)
    with pytest.raises(ValueError, match=rf"^scheduler_config.json: .*{message}"):
        type(scheduler)(**config)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(InputError, match="takes its noise from the network"):
        exported(sd_ext.make_scheduler("ddpm", variance_type="learned_range"), 4)
    with pytest.raises(InputError, match="noise_type 'brownian' is not in"):
        exported(sd_ext.make_scheduler("euler a", noise_type="brownian"), 4)
    with pytest.raises(InputError, match="names no number"):
        exported(sd_ext.make_scheduler("ddim"), [])
    with pytest.raises(InputError, match="1 to 1000"):
        exported(sd_ext.make_scheduler("ddim"), [4, 1001])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        export(sd_ext.make_scheduler("ddim"), tmp_path / "file", 4)
    ours = sd_ext.make_scheduler("ddim")
    ours.not_exportable = "it asks the weather"
    with pytest.raises(InputError, match="DDIMScheduler cannot be exported: it asks the weather"):
        exported(ours, 4)


def test_a_scheduler_that_is_more_than_its_tables_is_found_out(monkeypatch):
    ours = sd_ext.make_scheduler("euler a")
    monkeypatch.setattr(type(ours), "_noise", lambda self, x, *_: torch.zeros_like(x))
    with pytest.raises(InputError, match="its steps are not its tables' alone"):
        exported(ours, 4)


# ---- the Hub, with the network replaced ------------------------------------------------------------------------------


@pytest.fixture
def uploads(monkeypatch):
    """Files sent to the Hub, by path in the repository."""
    from diffusers.utils import hub_utils

    sent: dict[str, bytes] = {}

    def upload_folder(*, repo_id, folder_path, path_in_repo=None, **_):
        root = Path(folder_path)
        for path in root.rglob("*"):
            if path.is_file():
                sent["/".join([repo_id, path_in_repo or ".", path.relative_to(root).as_posix()])] = path.read_bytes()

    class Card:
        def save(self, path):
            Path(path).write_text("card")

    monkeypatch.setattr(hub_utils, "upload_folder", upload_folder)
    monkeypatch.setattr(hub_utils, "create_repo", lambda name, **_: type("Repo", (), {"repo_id": f"me/{name}"}))
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: Card())
    monkeypatch.setattr(hub_utils, "populate_model_card", lambda card: card)
    return sent


def test_pushing_a_scheduler_of_ours_names_its_class(uploads):
    sd_ext.make_scheduler("dpm++ 2m karras").push_to_hub("mine")
    assert set(uploads) == {"me/mine/./scheduler_config.json", "me/mine/./README.md"}
    config = json.loads(uploads["me/mine/./scheduler_config.json"])
    assert config["_class_name"] == "DPMSolverMultistepScheduler" and config["grid"] == "karras"


def test_pushing_an_exported_scheduler_takes_its_file_along(uploads):
    scheduler = exported(sd_ext.make_scheduler("dpm++ 2m"), 4)
    scheduler.push_to_hub("mine", subfolder="scheduler")
    assert set(uploads) == {f"me/mine/scheduler/{n}" for n in ("scheduler_config.json", "exported_scheduler.py")}
    assert json.loads(uploads["me/mine/scheduler/scheduler_config.json"])["_class_name"] == "ExportedScheduler"


def test_pushing_a_pipeline_with_an_exported_scheduler(uploads, tiny_pipeline):
    tiny_pipeline.scheduler = exported(sd_ext.make_scheduler("dpm++ 2m"), 4)
    tiny_pipeline.push_to_hub("mine")
    index = json.loads(uploads["me/mine/./model_index.json"])
    assert index["scheduler"] == ["exported_scheduler", "ExportedScheduler"]
    assert uploads["me/mine/./scheduler/exported_scheduler.py"] == SOURCE
