"""Optimizers by name: what they are given, what they refuse, and the groups they work on."""

import sys
import types

import pytest
import torch
from torch import nn

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.seams.accelerate import inner_optimizer
from sd_ext.training.optimizer.averaged import evaluating, to_evaluation, to_training
from sd_ext.training.optimizer.make import LORA_UP, find_class, make_optimizer, parameter_groups
from sd_ext.training.optimizer.names import PRESETS, parse_options

from .cases import CASES, descend


class Adapter(nn.Module):
    """Two layers of a LoRA, in peft's names, one of them a text encoder's."""

    def __init__(self):
        super().__init__()
        self.unet = nn.ModuleDict({"lora_A": nn.Linear(3, 2, bias=False), "lora_B": nn.Linear(2, 3)})
        self.text_encoder = nn.ModuleDict({"lora_A": nn.Linear(3, 2, bias=False), "lora_B": nn.Linear(2, 3)})


def groups_of(model: nn.Module, decay: float = 0.1, **ratios: float):
    return parameter_groups(model.named_parameters(), decay, ratios)


def names_of(model: nn.Module, group: dict) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is q for q in group["params"])}


def test_no_weight_decay_for_vectors():
    groups = groups_of(nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 3)))
    assert [(g["weight_decay"], len(g["params"]), g["ratio"]) for g in groups] == [(0.1, 2, 1.0), (0.0, 4, 1.0)]


def test_ratios_multiply_and_match_whole_parts_of_names():
    model = Adapter()
    groups = groups_of(model, lora_B=16.0, text_encoder=0.5, lora=99.0)
    found = {(g["ratio"], g["weight_decay"]): names_of(model, g) for g in groups}
    assert found == {
        (1.0, 0.1): {"unet.lora_A.weight"},
        (16.0, 0.1): {"unet.lora_B.weight"},
        (16.0, 0.0): {"unet.lora_B.bias"},
        (0.5, 0.1): {"text_encoder.lora_A.weight"},
        (8.0, 0.1): {"text_encoder.lora_B.weight"},
        (8.0, 0.0): {"text_encoder.lora_B.bias"},
    }


def test_lora_plus_finds_the_matrices_of_peft():
    """By what peft itself calls them: the ratio goes to those that start at zero, and to no other."""
    from peft import LoraConfig, inject_adapter_in_model

    model = nn.ModuleDict({"to_q": nn.Linear(4, 4), "conv": nn.Conv2d(4, 4, 3)})
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "conv"]), model)
    groups = groups_of(model, **dict.fromkeys(LORA_UP, 16.0))
    faster = [p for g in groups if g["ratio"] == 16 for p in g["params"]]
    slower = [p for g in groups if g["ratio"] == 1 for p in g["params"]]
    assert [len(faster), len(slower)] == [2, 2]
    assert not any(p.any() for p in faster)
    assert all(p.any() for p in slower)


def test_frozen_and_shared_parameters_are_taken_never_and_once():
    model = Adapter()
    model.unet.requires_grad_(False)
    named = [*model.named_parameters(), *model.named_parameters()]
    assert sum(len(g["params"]) for g in parameter_groups(named, 0.1)) == 3
    model.requires_grad_(False)
    with pytest.raises(InputError, match="all are frozen"):
        groups_of(model)


def test_a_ratio_that_cannot_be():
    with pytest.raises(InputError, match="'lora_B' is 0 times"):
        groups_of(Adapter(), lora_B=0)


@pytest.mark.parametrize("name", CASES)
def test_every_optimizer_descends(name):
    model, optimizer = descend(name, steps=150)
    loss = float(sum((p - 1).square().sum() for p in model.parameters()))
    start = float(sum((p - 1).square().sum() for p in descend(name, steps=0)[0].parameters()))
    assert loss < 0.9 * start
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_groups_start_at_their_own_rates():
    optimizer = make_optimizer("adamw", groups_of(Adapter(), lora_B=4.0), 0.5)
    assert [(g["lr"], g["ratio"]) for g in optimizer.param_groups] == [(0.5, 1.0), (2.0, 4.0), (2.0, 4.0)]
    assert all(g["fused"] for g in optimizer.param_groups)


def test_a_rate_moves_its_group_by_its_ratio():
    model = Adapter()
    optimizer = make_optimizer("sgd", groups_of(model, decay=0.0, lora_B=4.0), 0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(before[name] - p, torch.full_like(p, 2.0 if "lora_B" in name else 0.5))


def test_adafactor_moves_weights_that_are_zero_by_the_rate():
    """A LoRA's B: scaled by its own size it would move by a thousandth."""
    p = nn.Parameter(torch.zeros(8, 8))
    optimizer = make_optimizer("adafactor", parameter_groups([("b", p)], 0.0), 0.01)
    p.grad = torch.randn(8, 8)
    optimizer.step()
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.01, rel=0.05)


def test_options_reach_the_optimizer_and_lists_become_tuples():
    optimizer = make_optimizer("adamw", groups_of(Adapter()), 0.1, {"betas": [0.8, 0.9], "fused": False})
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["fused"] is False


def test_options_from_text():
    texts = ["betas=(0.9, 0.99)", "eps=1e-6", "decouple=true", "foreach = None", "mode=fast"]
    expected = {"betas": (0.9, 0.99), "eps": 1e-6, "decouple": True, "foreach": None, "mode": "fast"}
    assert parse_options(texts) == expected
    for wrong in (["eps"], ["=3"], ["a b=3"], ["eps=1", "eps=2"]):
        with pytest.raises(InputError, match="name=value"):
            parse_options(wrong)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"beta": (0.9, 0.99)}, "option of optimizer 'adamw': 'beta'; did you mean 'betas'"),
        ("adamw", {"lr": 1.0}, "'lr': use the run's own setting for learning_rate"),
        ("adamw", {"weight_decay": 1.0}, "'weight_decay': use"),
        ("adamw", {"betas": (2.0, 0.9)}, r"refuses its options \(betas=\(2.0, 0.9\)\): Invalid beta"),
        ("adamw", {"betas": 3}, "refuses its options"),
        ("lion", {"betas": (2.0, 0.9)}, "refuses its options"),
        ("torch.optim.LBFGS", {}, "several times a step"),
        ("torch.nn.Linear", {}, r"not a class derived from torch\.optim\.Optimizer"),
        ("torch.optim.Adamw", {}, "not a class"),
        ("no_such_package.Adam", {}, r"cannot be imported \(ModuleNotFoundError"),
        ("adamv", {}, "did you mean 'adamw'"),
        ("os.system('x')", {}, "unknown optimizer"),
    ],
)
def test_what_cannot_work_is_said(name, options, message):
    if name == "lion":
        pytest.importorskip("lion_pytorch")
    with pytest.raises(InputError, match=message):
        make_optimizer(name, groups_of(Adapter()), 0.1, options)


def test_an_optimizer_without_weight_decay_goes_without_and_says_so(caplog):
    optimizer = make_optimizer("torch.optim.Rprop", groups_of(Adapter()), 0.1)
    assert "'torch.optim.Rprop' has no weight decay" in caplog.text
    optimizer.step()


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_cannot_be(rate):
    with pytest.raises(InputError, match="learning_rate"):
        make_optimizer("adamw", groups_of(Adapter()), rate)


@pytest.mark.parametrize("name", [name for name, known in PRESETS.items() if known.package])
def test_a_missing_package_is_named_with_the_command(name, monkeypatch):
    module = PRESETS[name].path.rpartition(".")[0]
    for hidden in (module.split(".")[0], module):
        monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(InputError, match=f"pip install {PRESETS[name].package}$"):
        find_class(name)


def test_prodigy_takes_one_rate():
    pytest.importorskip("prodigyopt")
    assert PRESETS["prodigy"].learning_rate == 1.0
    with pytest.raises(InputError, match=r"one learning rate for all parameters: leave out LoRA\+"):
        make_optimizer("prodigy", groups_of(Adapter(), lora_B=4.0), 1.0)


def small_lora(name: str, rate: float, steps: int, warmup: int = 0) -> float:
    """A LoRA of rank 4 fitted to a change of rank 4; returns the loss as a share of that at the start."""
    draw = torch.Generator().manual_seed(0)
    down, change, x = (torch.randn(shape, generator=draw) for shape in ((4, 32), (32, 32), (256, 32)))
    a, b = nn.Parameter(down / 32**0.5), nn.Parameter(torch.zeros(32, 4))
    wanted = x @ (0.03 * change[:, :4] @ change[:4])
    optimizer = make_optimizer(name, parameter_groups([("lora_A", a), ("lora_B", b)], 0.01), rate)
    to_training(optimizer)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, warmup))
        optimizer.zero_grad()
        loss = (x @ a.t() @ b.t() - wanted).square().mean()
        loss.backward()
        losses.append(float(loss))
        optimizer.step()
    return losses[-1] / losses[0]


@pytest.mark.parametrize("name", [name for name in CASES if name in PRESETS and PRESETS[name].one_rate])
@pytest.mark.parametrize("warmup", [0, 50])
def test_what_finds_its_rate_trains_a_lora_at_its_default(name, warmup):
    """From a first guess of 1e-6 it makes most of the change; at AdamW's own rate it would train next to nothing. On a
    network: `test_trains.py`.
    """
    usual = PRESETS[name].usual_rate(1e-4)
    assert small_lora(name, usual, 400, warmup) < 0.3
    assert small_lora(name, 1e-4, 400, warmup) > 0.5


def test_unknown_names_do_not_run_code():
    for name in ("__import__('os')", "a..b", ".Adam", "torch.optim.", ""):
        with pytest.raises(UnknownNameError):
            find_class(name)


class Hoarder(torch.optim.SGD):
    """Keeps what no checkpoint can hold: an object, or a count beside its state."""

    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["seen"] = object()


class Counter(torch.optim.SGD):
    def state_dict(self):
        return {**super().state_dict(), "calls": 3}


@pytest.mark.parametrize(("cls", "message"), [(Hoarder, "keeps a object"), (Counter, "also keeps calls")])
def test_what_could_not_be_resumed_is_refused_at_once(cls, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "house_made", types.SimpleNamespace(Own=cls))
    with pytest.raises(InputError, match=message):
        make_optimizer("house_made.Own", groups_of(Adapter()), 0.1)


@pytest.mark.parametrize("name", ["adamw", "schedulefree-adamw"])
def test_looking_at_the_average_changes_nothing(name):
    """Only schedule-free has another set of weights; `evaluating` leaves not a bit of a trace."""
    if name not in CASES:
        pytest.skip("not installed")
    model, optimizer = descend(name, steps=20)
    before = [p.detach().clone() for p in model.parameters()]
    with evaluating(optimizer):
        moved = any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert moved == PRESETS[name].constant
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    to_evaluation(optimizer)
    to_training(optimizer)
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), b, rtol=1e-4, atol=1e-5)


def test_schedule_free_evaluates_at_the_average_of_its_iterates():
    """x_k = (1 - 1/k) x_(k-1) + z_k / k at a constant rate (Defazio et al. 2024, arXiv 2405.15682, eq. 5)."""
    pytest.importorskip("schedulefree")
    p = nn.Parameter(torch.tensor([[3.0, -2.0]]))
    optimizer = make_optimizer("schedulefree-adamw", parameter_groups([("p", p)], 0.0), 0.1)
    to_training(optimizer)
    iterates = []
    for _ in range(30):
        p.grad = p.detach() - 1
        optimizer.step()
        iterates.append(optimizer.state[p]["z"].clone())
    with evaluating(optimizer):
        torch.testing.assert_close(p.detach(), torch.stack(iterates).mean(0), rtol=1e-4, atol=1e-5)


def test_the_optimizer_inside_accelerates_wrapper():
    from accelerate import Accelerator

    optimizer = make_optimizer("adamw", groups_of(Adapter()), 0.1)
    assert inner_optimizer(Accelerator(cpu=True).prepare(optimizer)) is optimizer
    assert inner_optimizer(optimizer) is optimizer


def test_settings_can_be_checked_without_torch():
    import subprocess

    modules = "sd_ext.training.optimizer.settings, sd_ext.training.optimizer.schedules"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
