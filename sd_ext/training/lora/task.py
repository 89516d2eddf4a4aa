"""The task of LoRA training: U-Net and text encoders with adapters, their batches, previews and result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.lora import Lora, from_peft
from sd_ext.lora.kinds import find_kind
from sd_ext.models import Model
from sd_ext.sheets import labelled_sheet
from sd_ext.training.data.items import Item
from sd_ext.training.diffusion.previews import read_whole_pictures
from sd_ext.training.diffusion.settings import Shot
from sd_ext.training.diffusion.task import DiffusionTask
from sd_ext.training.lora.class_pictures import with_class_pictures
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.estimate import Workload
from sd_ext.training.lora.given import put
from sd_ext.training.lora.network import adapt_towers, adapt_unet, base_dtype, quantize, trains_text
from sd_ext.training.lora.new_words import Words, spell_out
from sd_ext.training.lora.rates import text_share
from sd_ext.training.lora.result import Finished, Noted, write_result
from sd_ext.training.lora.start import keep_start, without_start
from sd_ext.training.model.pipeline import make_pipeline
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.optimizer.make import LORA_UP
from sd_ext.training.settings.command import resolve


class LoraTask(DiffusionTask):
    """Trains adapters, and new words if there are any; the base model is frozen.

    Args:
        config: all settings.
        files: the base model on disk.

    Raises:
        InputError: there are no usable pictures, or a new word is in no caption.
    """

    name = "lora"
    config: LoraConfig

    def __init__(self, config: LoraConfig, files: Model):
        super().__init__(config, files)
        self.check_words()
        self.trains_text = trains_text(config)
        self.towers: TextTowers | None = None
        self.new_words: list[Words] = []
        self.at_start: Lora | None = None
        rate, words = config.rate.learning_rate, config.words
        text_ratio = (config.text.text_encoder_learning_rate or rate) / rate
        text_ratio *= text_share(config.adapters.block_rates, files.family)
        if self.trains_text and not text_ratio:
            raise InputError("block_rates is 0 for BASE, the text encoders: set it, or leave out text_encoder, tokens")
        self.ratios = {"towers": text_ratio} if self.trains_text else {}
        if words.tokens:
            self.ratios["vectors"] = config.token_rate / rate / text_ratio
        if config.adapters.lora_plus != 1:
            self.ratios |= dict.fromkeys(LORA_UP, config.adapters.lora_plus)
        self.stops = {"vectors": words.token_steps} if words.token_steps else {}

    def complete(self, items: list[Item]) -> list[Item]:
        """Add the class pictures of prior preservation."""
        return with_class_pictures(self.config.prior, items, self.config.pictures.resolution[0])

    def all_texts(self) -> list[str]:
        """The texts to encode before training: none if the text encoders are trained."""
        return [] if self.trains_text else super().all_texts()

    @property
    def workload(self) -> Workload:
        """The input of the memory estimate."""
        return Workload(self.config, self.files, self.sizes, self.channels, self.scale)

    # The model.

    def make_model(self) -> DiffusionLoss:
        """Load the base model, draw its previews, and add adapters and new words."""
        config = self.config
        unet = self.files.load("unet", base_dtype(config)).eval().to(self.device)
        self.base_pictures = self.draw_base(unet)
        if config.memory.base_precision == "int8":
            quantize(unet)
        self.ratios |= {f"unet.{path}": share for path, share in adapt_unet(unet, config, self.files.family).items()}
        if self.trains_text:
            captions = config.captions
            towers = TextTowers.load(self.files, base_dtype(config), captions.clip_skip, captions.caption_chunks)
            self.towers = towers.to(self.device)
            self.new_words = adapt_towers(self.towers, config)
        self.model: Any = self.make_loss(unet)
        if config.adapters.changes_base:
            path = Path(config.folder.out) / "start.safetensors"
            self.at_start = keep_start(self.adapted(), path, self.accelerator)
        return self.model

    def make_loss(self, unet: Any) -> Any:
        """The module that is minimised, with the U-Net as its `unet`."""
        return DiffusionLoss(unet, self.config.loss.loss, self.towers)

    def start_from(self, source: str) -> None:
        """Begin with the LoRA of a file, see `put`."""
        for note in put(source, self.adapted(), self.files, self.config):
            self.accelerator.print(note)

    def adapted(self) -> dict[str, Any]:
        """The models that have adapters, by part name."""
        towers = self.towers if self.config.text.text_encoder else None
        return {"unet": self.loss.unet, **(dict(towers.encoders) if towers else {})}

    def arrange(self) -> None:
        """Use channels_last memory, except for adapters whose kind needs contiguous factors."""
        super().arrange()
        if find_kind(self.config.adapters.method).contiguous:  # peft views the factors of convolutions as matrices
            for p in self.model.parameters():
                if p.requires_grad:
                    p.data = p.data.contiguous()

    # Words.

    def words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if self.towers is None:
            return super().words(texts)
        return {"tokens": self.towers.tokenize([self.spelled(text) for text in texts])}

    def check_words(self) -> None:
        """Raise `InputError` if a new word is in no caption, since it would not be trained at all."""
        for token in self.config.words.tokens:
            if not any(token in text for text in self.texts):
                raise InputError(
                    f"the new word {token} stands in no caption; write it into captions, instance_prompt or prefix"
                )

    def spelled(self, text: str) -> str:
        """A text with each new word replaced by the vocabulary entries of all its vectors, see `spell_out`."""
        return spell_out(text, self.config.words.tokens, self.config.words.token_vectors)

    def preview_words(self, text: str) -> dict[str, Tensor]:
        if self.towers is None:
            return super().preview_words(text)
        return self.towers(self.towers.tokenize([self.spelled(text)]).to(self.device))

    # Pictures.

    def draw_base(self, unet: Any) -> list[Image.Image]:
        """Draw the preview prompts with the base model, or read the pictures from the run's folder if they exist.

        Args:
            unet: the U-Net, before adapters are added.

        Returns:
            A picture of each prompt; empty if previews are off, and in all but the first process.
        """
        config = self.config
        if not self.accelerator.is_main_process or not config.folder.validate_every:
            return []
        known_by = repr((self.shots, self.noise, config.captions.clip_skip, config.captions.caption_chunks))
        name = f"base-{hashlib.sha256(known_by.encode()).hexdigest()[:8]}"
        folder = Path(config.folder.out) / "previews" / name
        there = read_whole_pictures(folder, len(self.prompts))
        if there is not None:
            return there
        towers, captions = None, config.captions
        if self.trains_text:
            towers = TextTowers.load(self.files, clip_skip=captions.clip_skip, chunks=captions.caption_chunks)
            towers = towers.to(self.device)
        with torch.no_grad():
            pictures = [Image.fromarray(each) for each in self.draw_prompts(self.drawer(unet), towers)]
        with whole.folder(folder, overwrite=True) as new:
            for number, picture in enumerate(pictures):
                picture.save(new / f"{number:04d}.png")
        return pictures

    def drawer(self, unet: Any) -> Any:
        """A pipeline with a given U-Net, for encoded prompts."""
        return make_pipeline(self.encoded.vae(), unet, self.noise, None, self.files)

    def draw_trained(self) -> list[Image.Image]:
        """Draw each prompt with the LoRA in its present state."""
        return [Image.fromarray(picture) for picture in self.draw_prompts(self.drawer(self.unet))]

    @property
    def own_shots(self) -> list[Shot]:
        """How `draw_trained` draws."""
        return self.shots

    def preview(self) -> Image.Image:
        """A contact sheet of each prompt by the base model and by the LoRA, drawn from the same noise."""
        pictures = self.draw_trained()
        if self.config.cache.cache:
            self.encoded.release()
        return labelled_sheet(self.rows(pictures), self.prompts)

    def rows(self, drawn: list[Image.Image]) -> dict[str, list[Image.Image]]:
        """The rows of a contact sheet, by label; `drawn` are the pictures by the LoRA."""
        return {"base": self.base_pictures, "LoRA": drawn}

    # The result.

    def trained(self) -> Lora:
        """The trained LoRA, for the original base model."""
        lora = from_peft(self.adapted(), base=self.files.family)
        return without_start(lora, self.at_start) if self.at_start else lora

    def notes(self) -> dict[str, Any]:
        """See `Noted`."""
        noted = Noted(
            samples=len(self.learnt),
            class_samples=len(self.pictures) - len(self.learnt),
            held_out=len(self.held_out or ()),
            pictures=len({sample.digest for sample in self.learnt}),
            steps_per_epoch=self.steps_per_epoch(PartialState().num_processes),
            prompts=tuple(self.prompts),
        )
        return asdict(noted)

    def export(self, new: Path, history: list[dict[str, float]], step: int, last: bool) -> None:
        """Write the LoRA and everything that goes with it, see `write_result`; its notes are printed."""
        drawn = self.draw_trained() if last and self.config.folder.validate_every else []
        finished = Finished(
            config=self.config,
            step=step,
            lora=self.trained(),
            new_words=self.new_words,
            base=self.files.family,
            model=self.files,
            noise=self.noise,
            history=history,
            noted=Noted(**self.notes()),
            rows=self.rows(drawn) if drawn else {},
            drawn=drawn,
            shots=self.own_shots,
        )
        for note in write_result(finished, new):
            self.accelerator.print(note)


def task_of(config: LoraConfig, files: Model) -> LoraTask:
    """The task that settings are for: `LoraTask`, or one of its kinds."""
    return resolve(config.task)(config, files)
