"""How much memory a run will take, found without loading a weight.

U-Net, trained text encoders and autoencoder are built of fake tensors, which have shapes and no numbers (PyTorch's
`FakeTensorMode`). One forward and backward pass of the largest batch through them takes seconds and nothing else; what
its operations would hold at once is counted. To that come weights, gradients, optimizer and averages.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.errors import InputError, SeamError
from sd_ext.models import Model
from sd_ext.seams.peft import let_all_act
from sd_ext.seams.torch import fake_tensors
from sd_ext.training.lora.adapters import trained_parameters
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.network import DTYPES, base_dtype, build_on_meta
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.optimizer.names import PRESETS
from sd_ext.training.run.memory import free_memory, gb, kept_bytes, make_fake, peak_bytes, size_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workload:
    """What a run's memory depends on.

    Args:
        config: all its settings.
        files: of the base model.
        sizes: height and width of each sample, in pixels.
        channels: of a latent.
        scale: pixels per latent, in height and in width.
    """

    config: LoraConfig
    files: Model
    sizes: Sequence[Hashable]
    channels: int
    scale: int

    @property
    def largest_batch(self) -> tuple[int, int, int]:
        """Samples, height and width of the batch with the most pixels."""
        counts: Counter[Any] = Counter(self.sizes)
        batches = [(min(self.config.loop.batch_size, count), *size) for size, count in counts.items()]
        return max(batches, key=lambda batch: batch[0] * batch[1] * batch[2])


@dataclass(frozen=True)
class Estimate:
    """Bytes on each process.

    Args:
        weights: of the models in memory while training.
        training: gradients, optimizer state and averages.
        activations: what a pass of the largest batch holds at most, forward and backward.
        encoding: autoencoder and activations while pictures are encoded, before the U-Net is loaded.
        drawing: autoencoder and activations while a preview is decoded, beside weights and training.
        trained: numbers that are trained.
    """

    weights: int
    training: int
    activations: int
    encoding: int
    drawing: int
    trained: int

    @property
    def total(self) -> int:
        """At most at once."""
        return max(self.encoding, self.weights + self.training + max(self.activations, self.drawing))

    def __str__(self) -> str:
        names = ("weights", "training", "activations", "encoding", "drawing")
        return f"{gb(self.total)} ({', '.join(f'{name} {gb(getattr(self, name))}' for name in names)})"


def estimate(work: Workload, device: torch.device) -> Estimate:
    """What a run takes on each process, beside Python and the libraries (about 1 GB)."""
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
        encoding = size_of([vae]) + peak_bytes([vae], lambda: encode_once(work, vae))
        drawing = (
            size_of([vae]) + peak_bytes([vae], lambda: decode_once(work, vae)) if config.folder.validate_every else 0
        )
    training = trained * (4 + config.optimizer.preset.state_bytes + (4 if config.loop.ema else 0))
    return Estimate(weights, training, activations, encoding, drawing, trained)


def at_most(work: Workload) -> int:
    """A cheap upper bound, in bytes, of what a run takes.

    Twice the models and what autograd keeps of a float32 pass with whole attention matrices and without checkpointing;
    to that come gradients, averages, the state of the optimizer that keeps most, and encoding and decoding pictures.
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
    with torch.device("meta"):
        return files.without_weights("vae").eval()


def _frozen(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not module.weight.requires_grad


def in_training(loss: DiffusionLoss) -> DiffusionLoss:
    """As in training, but for the adapters that draw a number, of which there are none here, whether to act."""
    loss.train()
    let_all_act(loss)
    return loss


def train_once(work: Workload, loss: DiffusionLoss, device: str) -> None:
    """A forward and backward pass of the largest batch, as the loop does it."""
    precision = work.config.machine.mixed_precision
    with torch.autocast(device, DTYPES[precision], enabled=precision != "no"):
        value = loss_once(work, loss)
    value.backward()


def loss_once(work: Workload, loss: DiffusionLoss) -> Tensor:
    """The loss of the largest batch; of tensors without numbers."""
    batch, height, width = work.largest_batch
    files, unet = work.files, loss.unet
    length = files.setting("text_encoder", "max_position_embeddings", int, 77)
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
    batch, height, width = work.largest_batch
    vae.encode(torch.empty(batch, 3, height, width)).latent_dist.std.clone()


@torch.no_grad()
def decode_once(work: Workload, vae: Any) -> None:
    side = work.config.pictures.resolution[0] // work.scale
    vae.decode(torch.empty(1, work.channels, side, side)).sample.clone()


def check_fits(work: Workload, device: torch.device) -> None:
    """Refuse a run that cannot fit; an exact estimate is made only where it may be close.

    Where no estimate can be made, that is said and the run goes on.

    Raises:
        InputError: see `check_memory`.
    """
    free = free_memory(device)
    try:
        if work.config.memory.memory_check and at_most(work) > free:
            check_memory(estimate(work, device), free, work.config)
    except SeamError as error:
        log.warning("whether the run fits into memory is not checked: %s", error)


def check_memory(needed: Estimate, free: int, config: LoraConfig) -> None:
    """Refuse a run that cannot fit.

    Raises:
        InputError: says how much is needed, how much there is, and what to change.
    """
    if config.memory.memory_check and needed.total > free:
        raise InputError(
            f"the run needs about {needed}, {gb(free)} are free; set {', or '.join(advice(needed, config))}; "
            "or memory_check = false if you know better"
        )


def advice(needed: Estimate, config: LoraConfig) -> list[str]:
    """What would help, the most of it first."""
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
