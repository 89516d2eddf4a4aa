"""How much memory a run will take, found without loading a weight.

U-Net, trained text encoders and autoencoder are built of fake tensors, which have shapes and no numbers (PyTorch's
`FakeTensorMode`). One forward and backward pass of the largest batch through them takes seconds and nothing else; what
its operations would hold at once is counted. To that come weights, gradients, optimizer and averages.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sd_ext.errors import InputError, SeamError
from sd_ext.seams.peft import let_all_act
from sd_ext.seams.torch import fake_tensors
from sd_ext.training.lora.adapters import trained_parameters
from sd_ext.training.model.files import ModelFiles
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.run.memory import free_memory, gb, kept_bytes, make_fake, peak_bytes, size_of
from sd_ext.training.settings import LoraConfig

if TYPE_CHECKING:
    from sd_ext.training.lora.task import LoraTask

log = logging.getLogger(__name__)

# Bytes of optimizer state for each trained number.
STATE = {"adamw": 8, "schedulefree-adamw": 8, "adamw8bit": 2, "adafactor": 1, "lion": 4, "sgd": 0, "prodigy": 16}
COMPUTES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def estimate(task: LoraTask, device: torch.device) -> Estimate:
    """What a run of a task takes on each process, beside Python and the libraries (about 1 GB)."""
    from sd_ext.training.lora.task import base_dtype  # which imports this module

    config = task.config
    unet, towers = task.build_on_meta()
    vae = vae_on_meta(task.files)
    models = [unet, *([towers] if towers else [])]
    trained = sum(trained_parameters(model) for model in models)
    with fake_tensors(), torch.device(device.type):
        for model in models:
            make_fake(model, base_dtype(config))
        make_fake(vae, torch.float32)
        weights = size_of([*models, *([] if config.cache else [vae])])
        if config.base_precision == "int8":
            weights -= sum(m.weight.numel() * (m.weight.element_size() - 1) for m in unet.modules() if _frozen(m))
        loss = in_training(DiffusionLoss(unet, config.loss, towers))
        activations = peak_bytes(models, lambda: train_once(task, loss, device.type))
        encoding = size_of([vae]) + peak_bytes([vae], lambda: encode_once(task, vae))
        drawing = size_of([vae]) + peak_bytes([vae], lambda: decode_once(task, vae)) if config.validate_every else 0
    training = trained * (4 + STATE.get(config.optimizer, 8) + (4 if config.ema else 0))
    return Estimate(weights, training, activations, encoding, drawing, trained)


def at_most(task: LoraTask) -> int:
    """More bytes than a run takes, found in a fraction of the time: what a pass in float32, with attention matrices and
    without checkpointing, keeps for its backward pass, twice."""
    unet, towers = task.build_on_meta()
    vae, models = vae_on_meta(task.files), [unet, *([towers] if towers else [])]
    unet.disable_gradient_checkpointing()
    for encoder in towers.encoders.values() if towers else []:
        encoder.gradient_checkpointing_disable()  # type: ignore[operator]
    loss = in_training(DiffusionLoss(unet, task.config.loss, towers).float())
    with torch.device("meta"):
        kept = kept_bytes(lambda: loss_once(task, loss))
        pictures = size_of([vae]) + sum(peak_bytes([vae], partial(do, task, vae)) for do in (encode_once, decode_once))
    trained = sum(trained_parameters(model) for model in models)
    return 2 * (size_of(models) + kept) + trained * (8 + STATE["prodigy"]) + pictures


def vae_on_meta(files: ModelFiles) -> Any:
    with torch.device("meta"):
        return files.without_weights("vae").eval()


def _frozen(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not module.weight.requires_grad


def in_training(loss: DiffusionLoss) -> DiffusionLoss:
    """As in training, but for the adapters that draw a number, of which there are none here, whether to act."""
    loss.train()
    let_all_act(loss)
    return loss


def largest_batch(task: LoraTask) -> tuple[int, int, int]:
    """Samples, height and width of the batch with the most pixels."""
    counts: Counter[Any] = Counter(task.sizes)
    batches = [(min(task.config.batch_size, count), *size) for size, count in counts.items()]
    return max(batches, key=lambda batch: batch[0] * batch[1] * batch[2])


def train_once(task: LoraTask, loss: DiffusionLoss, device: str) -> None:
    """A forward and backward pass of the largest batch, as the loop does it."""
    precision = task.config.mixed_precision
    with torch.autocast(device, COMPUTES[precision], enabled=precision != "no"):
        value = loss_once(task, loss)
    value.backward()


def loss_once(task: LoraTask, loss: DiffusionLoss) -> Tensor:
    """The loss of the largest batch; of tensors without numbers."""
    batch, height, width = largest_batch(task)
    files, unet = task.files, loss.unet
    length = files.setting("text_encoder", "max_position_embeddings", int, 77)
    conditions = {"states": torch.empty(batch, length, unet.config.cross_attention_dim)}
    if files.family == "sdxl":
        conditions["pooled"] = torch.empty(batch, files.setting("text_encoder_2", "projection_dim", int, 512))
        conditions["time_ids"] = torch.empty(batch, 6)
    if loss.towers is not None:
        conditions["tokens"] = torch.zeros(batch, len(loss.towers.encoders), length, dtype=torch.long)
    x = torch.empty(batch, task.channels, height // task.scale, width // task.scale)
    ones, t = torch.empty(batch), torch.zeros(batch, dtype=torch.long)
    return loss(x, t, x.clone(), ones, ones, conditions)["loss"]


@torch.no_grad()
def encode_once(task: LoraTask, vae: Any) -> None:
    batch, height, width = largest_batch(task)
    vae.encode(torch.empty(batch, 3, height, width)).latent_dist.std.clone()


@torch.no_grad()
def decode_once(task: LoraTask, vae: Any) -> None:
    side = task.config.resolution[0] // task.scale
    vae.decode(torch.empty(1, task.channels, side, side)).sample.clone()


def check_fits(task: LoraTask, device: torch.device) -> None:
    """Refuse a run that cannot fit; an exact estimate is made only where it may be close.

    Where no estimate can be made, that is said and the run goes on.

    Raises:
        InputError: see `check_memory`.
    """
    free = free_memory(device)
    try:
        if task.config.memory_check and at_most(task) > free:
            check_memory(estimate(task, device), free, task.config)
    except SeamError as error:
        log.warning("whether the run fits into memory is not checked: %s", error)


def check_memory(needed: Estimate, free: int, config: LoraConfig) -> None:
    """Refuse a run that cannot fit.

    Raises:
        InputError: says how much is needed, how much there is, and what to change.
    """
    if config.memory_check and needed.total > free:
        raise InputError(
            f"the run needs about {needed}, {gb(free)} are free; set {', or '.join(advice(needed, config))}; "
            "or memory_check = false if you know better"
        )


def advice(needed: Estimate, config: LoraConfig) -> list[str]:
    """What would help, the most of it first."""
    most = max(("activations", "encoding", "drawing"), key=lambda name: getattr(needed, name))
    helps = {
        "gradient_checkpointing = true": most == "activations" and not config.gradient_checkpointing,
        "validate_every = 0 (no pictures)": most == "drawing",
        "a smaller batch_size (with accumulation for the same step)": most != "drawing" and config.batch_size > 1,
        "mixed_precision = bf16": config.mixed_precision == "no",
        "base_precision = int8": config.base_precision != "int8" and config.init not in ("pissa", "olora"),
        f"a resolution below {max(config.resolution)}": True,
    }
    return [text for text, able in helps.items() if able]
