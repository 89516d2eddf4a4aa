"""Estimates the memory that a run needs, without loading weights.

U-Net, trained text encoders and autoencoder are built of fake tensors, which have shapes but no data (PyTorch's
`FakeTensorMode`). One forward and backward pass of the largest batch is run with them, which takes seconds and hardly
any memory, and the peak of what its operations would allocate is counted. The memory of weights, gradients, optimizer
state and averaged weights is added.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext import __version__
from sd_ext.errors import InputError, SeamError
from sd_ext.models import Model
from sd_ext.seams.peft import let_all_act
from sd_ext.seams.torch import fake_tensors
from sd_ext.training.data.known import Known
from sd_ext.training.lora.adapters import trained_parameters
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.network import DTYPES, base_dtype, build_on_meta
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.optimizer.names import PRESETS
from sd_ext.training.run.memory import free_memory, gb, kept_bytes, make_fake, peak_bytes, size_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workload:
    """Everything that the memory of a run depends on.

    Args:
        config: all settings.
        files: the base model.
        sizes: height and width of each sample, in pixels.
        channels: channels of a latent.
        scale: pixels per latent pixel, in height and in width.
        copies: how many times a sample is in the batch that gradients flow through.
        watched: how many times it is in the batch that the base model sees without gradients; 0 for no such batch.
    """

    config: LoraConfig
    files: Model
    sizes: Sequence[Hashable]
    channels: int
    scale: int
    copies: int = 1
    watched: int = 0

    @property
    def largest_batch(self) -> tuple[int, int, int]:
        """Number of samples, and their height and width in pixels, of the batch with the most pixels."""
        counts: Counter[Any] = Counter(self.sizes)
        batches = [(min(self.config.loop.batch_size, count), *size) for size, count in counts.items()]
        return max(batches, key=lambda batch: batch[0] * batch[1] * batch[2])


@dataclass(frozen=True)
class Estimate:
    """The memory of a run, in bytes for each process.

    Args:
        weights: weights of the models that are in memory during training.
        training: gradients, optimizer state and averaged weights.
        activations: peak of a forward and backward pass of the largest batch.
        encoding: autoencoder and its activations while pictures are encoded, before the U-Net is loaded.
        drawing: autoencoder and its activations while a preview is decoded, in addition to weights and training.
        trained: number of trained parameters (not bytes).
        flops: operations of a forward and backward pass of the largest batch (not bytes).
    """

    weights: int
    training: int
    activations: int
    encoding: int
    drawing: int
    trained: int
    flops: int = 0

    @property
    def total(self) -> int:
        """The peak over all phases of the run, in bytes."""
        return max(self.encoding, self.weights + self.training + max(self.activations, self.drawing))

    def __str__(self) -> str:
        names = ("weights", "training", "activations", "encoding", "drawing")
        return f"{gb(self.total)} ({', '.join(f'{name} {gb(getattr(self, name))}' for name in names)})"


def estimate(work: Workload, device: torch.device) -> Estimate:
    """Estimate the memory of a run, without Python and the libraries (about 1 GB for each process).

    Args:
        work: the run.
        device: the device it will run on.

    Raises:
        SeamError: this version of PyTorch is not supported.
    """
    config = work.config
    unet, towers = build_on_meta(config, work.files)
    vae = vae_on_meta(work.files)
    models = [unet, *([towers] if towers else [])]
    trained = sum(trained_parameters(model) for model in models)
    with fake_tensors(), torch.device(device.type):
        for model in models:
            make_fake(model, base_dtype(config))
        make_fake(vae, torch.float32)
        weights = size_of([*models, *([] if config.cache.cache else [vae])])
        if config.memory.base_precision == "int8":
            weights -= sum(m.weight.numel() * (m.weight.element_size() - 1) for m in unet.modules() if _frozen(m))
        loss = in_training(DiffusionLoss(unet, config.loss.loss, towers))
        activations = peak_bytes(models, lambda: train_once(work, loss, device.type))
        if work.watched:
            activations = max(activations, peak_bytes(models, lambda: watch_once(work, loss, device.type)))
        encoding = size_of([vae]) + peak_bytes([vae], lambda: encode_once(work, vae))
        drawing = (
            size_of([vae]) + peak_bytes([vae], lambda: decode_once(work, vae)) if config.folder.validate_every else 0
        )
        from torch.utils.flop_counter import FlopCounterMode  # not where torch lacks what it is made of

        with FlopCounterMode(display=False) as counted:  # by itself: it takes operations apart, and so their memory
            train_once(work, loss, device.type)
    training = trained * (4 + config.optimizer.preset.state_bytes + (4 if config.loop.ema else 0))
    return Estimate(weights, training, activations, encoding, drawing, trained, counted.get_total_flops())


def at_most(work: Workload) -> int:
    """A quick upper bound of a run's memory, in bytes; takes much less time than `estimate`.

    It is the sum of: twice the models; twice the tensors that autograd saves in a float32 pass with complete attention
    matrices and without gradient checkpointing; gradients, averaged weights and the state of the optimizer with the
    largest state; encoding and decoding a picture.
    """
    unet, towers = build_on_meta(work.config, work.files)
    vae, models = vae_on_meta(work.files), [unet, *([towers] if towers else [])]
    unet.disable_gradient_checkpointing()
    for encoder in towers.encoders.values() if towers else []:
        encoder.gradient_checkpointing_disable()  # type: ignore[operator]
    loss = in_training(DiffusionLoss(unet, work.config.loss.loss, towers).float())
    with torch.device("meta"):
        kept = kept_bytes(lambda: loss_once(work, loss))
        pictures = size_of([vae]) + sum(peak_bytes([vae], partial(do, work, vae)) for do in (encode_once, decode_once))
    trained = sum(trained_parameters(model) for model in models)
    state = max(work.config.optimizer.preset.state_bytes, *(known.state_bytes for known in PRESETS.values()))
    return 2 * (size_of(models) + kept) + trained * (4 + state + 4) + pictures


def vae_on_meta(files: Model) -> Any:
    """The autoencoder on PyTorch's meta device, without weights."""
    with torch.device("meta"):
        return files.without_weights("vae").eval()


def _frozen(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not module.weight.requires_grad


def in_training(loss: DiffusionLoss) -> DiffusionLoss:
    """Put the loss into training mode, with all adapters switched on.

    Adapters that are switched off at random in training would draw numbers, which fake tensors do not have.
    """
    loss.train()
    let_all_act(loss)
    return loss


def train_once(work: Workload, loss: DiffusionLoss, device: str) -> None:
    """A forward and backward pass of the largest batch, in the precision of the training loop."""
    precision = work.config.machine.mixed_precision
    with torch.autocast(device, DTYPES[precision], enabled=precision != "no"):
        value = loss_once(work, loss)
    value.backward()


@torch.no_grad()
def watch_once(work: Workload, loss: DiffusionLoss, device: str) -> None:
    """A forward pass of what the base model sees of the largest batch."""
    precision = work.config.machine.mixed_precision
    with torch.autocast(device, DTYPES[precision], enabled=precision != "no"):
        loss_once(replace(work, copies=work.watched), loss)


def loss_once(work: Workload, loss: DiffusionLoss) -> Tensor:
    """The loss of the largest batch, on inputs of the right shapes; their values do not matter."""
    batch, height, width = work.largest_batch
    batch *= work.copies
    files, unet = work.files, loss.unet
    length = files.setting("text_encoder", "max_position_embeddings", int, 77) * work.config.captions.caption_chunks
    conditions = {"states": torch.empty(batch, length, unet.config.cross_attention_dim)}
    if files.family == "sdxl":
        conditions["pooled"] = torch.empty(batch, files.setting("text_encoder_2", "projection_dim", int, 512))
        conditions["time_ids"] = torch.empty(batch, 6)
    if loss.towers is not None:
        conditions["tokens"] = torch.zeros(batch, len(loss.towers.encoders), length, dtype=torch.long)
    x = torch.empty(batch, work.channels, height // work.scale, width // work.scale)
    ones, t = torch.empty(batch), torch.zeros(batch, dtype=torch.long)
    return loss(x, t, x.clone(), ones, ones, conditions)["loss"]


@torch.no_grad()
def encode_once(work: Workload, vae: Any) -> None:
    """Encode a batch of pictures of the largest size; only its memory matters."""
    batch, height, width = work.largest_batch
    vae.encode(torch.empty(batch, 3, height, width)).latent_dist.std.clone()


@torch.no_grad()
def decode_once(work: Workload, vae: Any) -> None:
    """Decode the largest preview; only its memory matters."""
    shots = work.config.previews.shots([""], work.config.pictures.resolution[0], work.scale)
    largest = max(shots, key=lambda shot: shot.height * shot.width)
    size = largest.height // work.scale, largest.width // work.scale
    vae.decode(torch.empty(1, work.channels, *size)).sample.clone()


def bound(work: Workload, known: Known | None) -> int:
    """`at_most`, not worked out again for settings, model and sizes that it is known for."""
    if known is None:
        return at_most(work)
    config, files = work.config, work.files
    decisive = (
        config.adapters, config.text, config.words, config.memory, config.unet, config.loss.loss,
        config.loop.batch_size, config.machine.mixed_precision, config.captions.caption_chunks,
        config.optimizer.preset.state_bytes,
        config.previews.shots([""], config.pictures.resolution[0], work.scale),
        work.largest_batch, work.copies, work.watched, work.channels, work.scale, files.family,
        [files.config(part) for part in ("unet", "vae", *files.text_parts)], torch.__version__, __version__,
    )  # fmt: skip
    name = hashlib.sha256(repr(decisive).encode()).hexdigest()
    found = known.get("memory", name, [])
    if found is None:
        found = at_most(work)
        known.put("memory", name, [], found)
    return found


def check_fits(work: Workload, device: torch.device, known: Known | None = None) -> None:
    """Refuse a run that does not fit into free memory.

    The slow estimate is made only if the quick upper bound exceeds the free memory. If no estimate can be made, a
    warning is logged and the run goes on.

    Raises:
        InputError: see `check_memory`.
    """
    free = free_memory(device)
    try:
        if work.config.memory.memory_check and bound(work, known) > free:
            check_memory(estimate(work, device), free, work.config)
    except SeamError as error:
        log.warning("whether the run fits into memory is not checked: %s", error)


def check_memory(needed: Estimate, free: int, config: LoraConfig) -> None:
    """Refuse a run that needs more memory than is free, unless the setting `memory_check` is off.

    Args:
        needed: the estimate.
        free: free memory, in bytes.
        config: all settings.

    Raises:
        InputError: it does not fit; says how much is needed and free, and which settings to change.
    """
    if config.memory.memory_check and needed.total > free:
        raise InputError(
            f"the run needs about {needed}, {gb(free)} are free; set {', or '.join(advice(needed, config))}; "
            "or memory_check = false if you know better"
        )


def advice(needed: Estimate, config: LoraConfig) -> list[str]:
    """Changes of settings that reduce the memory, the most effective ones first."""
    most = max(("activations", "encoding", "drawing"), key=lambda name: getattr(needed, name))
    loop, changes_base = config.loop, config.adapters.changes_base
    helps = {
        "gradient_checkpointing = true": most == "activations" and not config.unet.gradient_checkpointing,
        "validate_every = 0 (no pictures)": most == "drawing",
        "a smaller batch_size (with accumulation for the same step)": most != "drawing" and loop.batch_size > 1,
        "mixed_precision = bf16": config.machine.mixed_precision == "no",
        "base_precision = int8": config.memory.base_precision != "int8" and not changes_base,
        f"a resolution below {max(config.pictures.resolution)}": True,
    }
    return [text for text, able in helps.items() if able]
