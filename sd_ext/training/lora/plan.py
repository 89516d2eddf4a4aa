"""The plan of a LoRA run for `--dry-run`: settings, data and memory are checked, and no weights are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState

from sd_ext.errors import SeamError
from sd_ext.training.lora.class_pictures import missing
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.estimate import check_memory, estimate
from sd_ext.training.lora.task import LoraTask, task_of
from sd_ext.training.model.chunked import lengths, room, told
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.run.folder import check_folder
from sd_ext.training.run.machine import check_machine, uses_cpu
from sd_ext.training.run.memory import free_memory, gb


def plan_lora(config: LoraConfig) -> Iterator[str]:
    """Check a run and describe what it would do. Nothing is written.

    Yields:
        Lines of text: model, pictures, buckets, captions, steps, trained parameters, memory.

    Raises:
        InputError: the run could not work; says why.
    """
    check_machine(config)
    state = PartialState(cpu=uses_cpu(config.machine))
    task = task_of(config, find_trainable(config.base.model, config.base.variant, config.base.revision))
    for name, text in facts(task, state.num_processes):
        yield f"{name:<15} {text}"
    if config.folder.out:
        check_folder(task.config, task.name)
    try:
        needed, free = estimate(task.workload, state.device), free_memory(state.device)
    except SeamError as error:
        yield f"{'memory':<15} not known: {error}"
        return
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
