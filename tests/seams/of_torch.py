from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from torch import nn

from sd_ext.seams import torch as seam

from .probe import probe

WITHOUT_COMPILER = """
import sys
from sd_ext.seams.torch import put_off_dynamo
put_off_dynamo()
import accelerate, torch
from diffusers.utils.torch_utils import is_compiled_module, maybe_allow_in_graph
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
assert not is_compiled_module(model) and maybe_allow_in_graph(int) is int
assert "torch._dynamo.eval_frame" not in sys.modules, "loaded"
compiled = torch.compile(model, backend="eager")
assert torch.equal(compiled(torch.ones(1, 2)), model(torch.ones(1, 2)))
assert is_compiled_module(compiled) and "torch._dynamo.eval_frame" in sys.modules
"""


@probe("torch.put_off_dynamo")
def optimizers_work_without_the_compiler_which_is_there_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True)
    assert not done.returncode, done.stderr


@probe("torch.version")
def tensors_know_when_they_are_written_to() -> None:
    x = torch.zeros(3)
    before = seam.version(x)
    assert before == seam.version(x)
    x.add_(1)
    assert before != seam.version(x)
    with torch.inference_mode():
        assert seam.version(torch.zeros(3)) is None


@probe("torch.storage_number")
def storages_have_numbers() -> None:
    with seam.fake_tensors():
        fake = [torch.zeros(4), torch.zeros(4)]
    for a, b in (fake, [torch.zeros(4), torch.zeros(4)]):
        assert seam.storage_number(a.untyped_storage()) == seam.storage_number(a[1:].untyped_storage())
        assert seam.storage_number(a.untyped_storage()) != seam.storage_number(b.untyped_storage())


@probe("torch.lerp_all")
def averages_move_together() -> None:
    averages, weights = [torch.rand(3), torch.rand(2, 2)], [torch.rand(3), torch.rand(2, 2)]
    expected = [torch.lerp(a, w, 0.3) for a, w in zip(averages, weights, strict=True)]
    seam.lerp_all(averages, weights, 0.3)
    torch.testing.assert_close(averages, expected)


@probe("torch.has_group_norm_statistics")
def group_norms_give_their_statistics() -> None:
    assert seam.has_group_norm_statistics()
    x, weight, bias = torch.rand(2, 4, 3, 3), torch.rand(4), torch.rand(4)
    y, mean, rstd = seam.group_norm_statistics(x, weight, bias, 2, 1e-5)
    torch.testing.assert_close(y, nn.functional.group_norm(x, 2, weight, bias))
    groups = x.reshape(2, 2, -1)
    torch.testing.assert_close(mean, groups.mean(-1))
    torch.testing.assert_close(rstd, (groups.var(-1, correction=0) + 1e-5) ** -0.5)


@probe("torch.fake_tensors")
def fake_tensors_take_no_memory() -> None:
    with seam.fake_tensors():
        assert (torch.empty(10**15) + 1).shape == (10**15,)


@probe("torch.watching")
def every_operation_is_seen() -> None:
    seen: list[tuple[int, ...]] = []
    x = torch.ones(7, requires_grad=True)
    with seam.watching(lambda tensor: seen.append(tuple(tensor.shape))):
        y = x * x
        forward = list(seen)
        y.sum().backward()
    assert (7,) in forward
    assert (7,) in seen[len(forward) :]
    (x * x).sum()
    assert len(seen) < 20, "and none outside"


@probe("torch.is_compiled_in_place")
def compiling_in_place_is_seen() -> None:
    module = nn.Linear(2, 2)
    assert not seam.is_compiled_in_place(module)
    module.compile()
    assert seam.is_compiled_in_place(module)


@probe("torch.uncompiled")
def the_model_inside_a_compiled_one_is_found() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    compiled: Any = torch.compile(module)
    assert seam.uncompiled(compiled) is module
    assert seam.uncompiled(module) is module
    assert [seam.uncompiled_path(name) for name, _ in compiled.named_parameters()] == ["0.weight", "0.bias"]


@probe("torch.structure")
def copies_share_weights() -> None:
    module: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].compile()
    module.left_out = "left out"
    other: Any = nn.Sequential.__new__(nn.Sequential)
    vars(other).update(seam.structure(module, without=("left_out",)))
    assert other[0] is not module[0]
    assert other[0].weight is module[0].weight
    assert other[1].running_mean is module[1].running_mean
    assert not hasattr(other, "left_out")
    assert not seam.is_compiled_in_place(other[0])
    assert torch.equal(other[0](torch.ones(1, 2)), module[0].forward(torch.ones(1, 2)))


@probe("torch.replica")
def replicas_have_other_children() -> None:
    module, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    module[1].register_forward_hook(lambda *_: seen.append(1))
    other = seam.replica(module, {"0": nn.Identity()})
    assert torch.equal(other(-torch.ones(1, 2)), torch.zeros(1, 2))
    assert seen == [1]
    assert isinstance(module[0], nn.Linear)
    assert other[1] is module[1]


@probe("torch.drop_hooks")
def hooks_of_a_class_are_dropped() -> None:
    class Hook:
        def __call__(self, *_: Any) -> None: ...

    module, others = nn.ReLU(), []
    module.register_forward_hook(Hook(), with_kwargs=True, always_call=True)
    module.register_forward_pre_hook(Hook(), with_kwargs=True)
    module.register_forward_hook(lambda *_: others.append(1))
    seam.drop_hooks(module, Hook)
    module(torch.ones(1))
    assert others == [1]
    assert [len(value) for name, value in vars(module).items() if "_forward_" in name] == [1, 0, 0, 0, 0]


@probe("torch.shadowed")
def attributes_are_hidden_for_a_while() -> None:
    plain, registered = nn.Module(), nn.Module()
    plain.part, registered.part = "own", nn.Linear(2, 2)  # type: ignore[assignment]
    own = registered.part
    with seam.shadowed([plain, registered], "part", "other"):
        assert (plain.part, registered.part) == ("other", "other")
        assert set(registered.state_dict()) == {"part.weight", "part.bias"}
    assert plain.part == "own"
    assert registered.part is own
