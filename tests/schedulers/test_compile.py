"""`step()` is one graph under torch.compile, and waits for no device."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sd_ext
from sd_ext.board import BOARD

from .conftest import SD
from .over import NAMES, over

REPRESENTATIVES = ["ddim", "dpm++ 2m karras", "dpm++ 2m sde", "heun", "euler a", "unipc", "dpm++ sde", "plms"]
EVERY = [(name, dtype) for name in REPRESENTATIVES for dtype in (torch.float32, torch.bfloat16)]


def network(x):
    return torch.tanh(0.3 * x.sum(1, keepdim=True) + 0.5 * x)


def run(scheduler, step, dtype=torch.float32):
    """A run with announced start; noise from the global generator, which a compiled graph draws from too."""
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(0)
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8).to(dtype)
    for t in scheduler.timesteps:
        x = step(network(x), t, x, return_dict=False)[0]
    return x


@over("name, dtype", [("dpm++ sde", torch.bfloat16)], full=EVERY)
@torch._dynamo.config.patch(recompile_limit=16)
def test_the_step_is_one_graph(name, dtype):
    """fullgraph=True raises at any break. One small graph for each call of the table; a second run compiles nothing."""
    torch._dynamo.reset()
    scheduler = sd_ext.make_scheduler(name, SD, clip_sample=name == "ddim")
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(scheduler.step, fullgraph=True, backend=backend)
    expected = run(scheduler, scheduler.step, dtype)
    assert torch.equal(run(scheduler, compiled, dtype), expected)
    assert 1 <= len(graphs) <= 10
    made = len(graphs)
    assert torch.equal(run(scheduler, compiled, dtype), expected)
    assert len(graphs) == made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@over("name", REPRESENTATIVES)
def test_a_run_is_one_cuda_graph(name):
    """A capture fails where the host waits for the device; what is replayed is the run on the latent that is there."""
    scheduler = sd_ext.make_scheduler(name, SD, clip_sample=name == "ddim")
    scheduler.set_timesteps(10, device="cuda")
    start, noise = torch.randn(2, 1, 4, 8, 8, device="cuda").unbind()

    def loop():
        scheduler.set_begin_index(0)
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(network(x), t, x, variance_noise=noise, return_dict=False)[0]
        return x

    side = torch.cuda.Stream()  # as a capture asks, what is set up at first use is set up before it
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        loop()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loop()
    for seed in range(2):
        start.copy_(torch.randn(start.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert torch.equal(captured, loop())


class NoReading(TorchDispatchMode):
    """Fails where a tensor's value is read by the host, which on a GPU waits for all work queued before."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@over("name", NAMES)
def test_no_step_reads_a_tensor(name):
    """In a pipeline's loop over `scheduler.timesteps`, the unannounced start included."""
    scheduler = sd_ext.make_scheduler(name)
    scheduler.set_timesteps(9)
    x = torch.randn(1, 4, 8, 8)
    with NoReading():
        for t in scheduler.timesteps:
            BOARD.write(t, torch.cat([network(0.9 * x), network(x)]))
            x = scheduler.step(network(x), t, x).prev_sample
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReading():
        x.sum().item()
