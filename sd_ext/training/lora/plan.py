"""The plan of a LoRA run for `--dry-run`: settings, data and memory are checked, and no weights are loaded."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState

from sd_ext.errors import SeamError
from sd_ext.training.lora.begin import checked_task
from sd_ext.training.lora.class_pictures import missing
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.estimate import Estimate, check_memory, estimate
from sd_ext.training.lora.network import DTYPES
from sd_ext.training.lora.result import SAVED
from sd_ext.training.lora.task import LoraTask
from sd_ext.training.model.chunked import lengths, room, told
from sd_ext.training.run.folder import check_folder
from sd_ext.training.run.memory import free_memory, gb


def plan_lora(config: LoraConfig) -> Iterator[str]:
    """Check a run and describe what it would do. Nothing is written.

    Yields:
        Lines of text: model, pictures, buckets, captions, steps, optimizer, disk, time, trained parameters, memory.

    Raises:
        InputError: the run could not work; says why.
    """
    state, task = checked_task(config)
    for name, text in facts(task, state.num_processes):
        yield f"{name:<15} {text}"
    if config.folder.out:
        check_folder(task.config, task.name)
    try:
        needed, free = estimate(task.workload, state.device), free_memory(state.device)
    except SeamError as error:
        yield f"{'memory':<15} not known: {error}"
        return
    yield f"{'disk':<15} {disk(task, needed)}"
    yield f"{'time':<15} {time_of(task, needed, state)}"
    adapters = config.adapters
    yield f"{'trained':<15} {needed.trained:,} parameters ({adapters.method}, rank {adapters.rank})"
    yield f"{'memory':<15} {needed}, beside about 1 GB for Python; {gb(free)} free on {state.device.type}"
    check_memory(needed, free, task.config)


def facts(task: LoraTask, processes: int) -> Iterator[tuple[str, str]]:
    """The lines of the plan that need no U-Net, as (name, text)."""
    config = task.config
    yield "model", f"{config.base.model} ({task.files.family}), predicts {task.levels.prediction}"
    yield "pictures", pictures(task)
    yield "buckets", buckets(task)
    yield "held out", f"{len(task.held_out)} pictures" if task.held_out else "none: no validation loss"
    yield "captions", captions(task)
    prior = config.prior
    made = f"{missing(prior)} of {prior.class_images} to be made"
    yield "class pictures", made if prior.class_data else "none"
    yield "steps", steps(task, processes)
    yield "optimizer", config.training()
    yield "result", str(Path(config.folder.out or "OUT") / "model")


def pictures(task: LoraTask) -> str:
    """How many pictures and samples are trained on, and how many pictures are left out."""
    count = len({sample.digest for sample in task.pictures.samples if not sample.item.prior})
    left_out = f"{len(task.pictures.skipped)} left out" if task.pictures.skipped else "none left out"
    return f"{count}, {len(task.pictures)} samples an epoch, {left_out}"


def buckets(task: LoraTask) -> str:
    """The number of samples of each size."""
    counts = Counter(f"{width}x{height}" for height, width in task.pictures.sizes)
    return ", ".join(f"{size}: {count}" for size, count in counts.most_common())


def captions(task: LoraTask) -> str:
    """How many different texts there are, and how many are too long for the tokenizer, with an example."""
    tokenizer, chunks = task.files.load("tokenizer"), task.config.captions.caption_chunks
    texts = [task.spelled(text) for text in task.texts]
    read, lost = told(texts, lengths(tokenizer, texts, chunks), chunks, room(tokenizer))
    return "; ".join(filter(None, [f"{len(task.texts)} texts", read, lost]))


def steps(task: LoraTask, processes: int) -> str:
    """The number of steps, of samples in each, and of epochs, and the interval of checkpoints."""
    loop, per_epoch = task.config.loop, task.steps_per_epoch(processes)
    samples = loop.batch_size * loop.accumulation * processes
    return (
        f"{loop.steps} of {samples} samples, {per_epoch} an epoch: {loop.steps / per_epoch:.1f} epochs, "
        f"a checkpoint every {task.config.folder.checkpoint_every}"
    )


def disk(task: LoraTask, needed: Estimate) -> str:
    """What a run writes, and how much room there is."""
    config, loop = task.config, task.config.loop
    folder = config.folder
    each = needed.trained * (4 + config.optimizer.preset.state_bytes + (4 if loop.ema else 0))
    kept = min(folder.keep, -(-loop.steps // folder.checkpoint_every))
    kept += loop.steps // folder.save_every if folder.save_every else 0
    result = 2 * needed.trained * SAVED[config.result.save_dtype].itemsize
    exports = (loop.steps // folder.save_every) * result if folder.save_every else 0
    parts = {"checkpoints": (kept + 1) * each, "results": result + exports}  # one more while the next is written
    if config.cache.cache:
        parts["cache, if all is new"] = cache_bytes(task)
    said = ", ".join(f"{name} {gb(size)}" for name, size in parts.items())
    there = [path for path in (Path(folder.out or "."), *Path(folder.out or ".").absolute().parents) if path.exists()]
    free = shutil.disk_usage(there[0]).free
    short = "" if sum(parts.values()) <= free else ": too little"
    return f"about {gb(sum(parts.values()))} ({said}); {gb(free)} free{short}"


def cache_bytes(task: LoraTask) -> int:
    """The bytes of latents (mean and deviation) and text states in the cache."""
    number = 2 if task.config.cache.cache_dtype == "fp16" else 4
    samples = [*task.pictures.samples, *(task.held_out.samples if task.held_out else ())]
    views = {(sample.digest, sample.size, flip): sample for sample in samples for flip in (False, sample.item.flip)}
    latents = sum(2 * task.channels * s.size[0] * s.size[1] // task.scale**2 for s in views.values())
    rows = task.files.setting("text_encoder", "max_position_embeddings", int, 77) * task.config.captions.caption_chunks
    width = task.files.setting("unet", "cross_attention_dim", int, 768)
    return number * (latents + len(task.all_texts()) * rows * width)


def time_of(task: LoraTask, needed: Estimate, state: PartialState) -> str:
    """How long the steps take at least: their arithmetic, at the speed of a large matrix product here."""
    config = task.config
    flops = needed.flops * config.loop.accumulation
    precision = config.machine.mixed_precision
    speed = matrix_speed(state.device, DTYPES[precision])
    least = flops * config.loop.steps / speed
    return (
        f"at least {duration(least)} ({flops / 1e9:.3g} GFLOP a step in each process, {speed / 1e9:.3g} GFLOP/s "
        "measured here), without start-up, encoding and pictures; small models take several times that"
    )


def matrix_speed(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Operations a second in products of matrices, the best of those made in a fraction of a second.

    On a CPU they are small, so that the best is one that no other process interrupted.
    """
    side = 256 if device.type == "cpu" else 4096
    a = torch.randn(side, side, device=device).to(dtype)
    best, end = math.inf, time.monotonic() + seconds
    while best == math.inf or time.monotonic() < end:
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
