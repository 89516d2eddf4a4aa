"""What `train_lora` brings to the loop: a U-Net and text encoders with adapters, their batches, previews and result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.lora import Lora, from_peft
from sd_ext.lora.kinds import find_kind
from sd_ext.training.data import Item
from sd_ext.training.diffusion import DiffusionTask
from sd_ext.training.lora.adapters import TEXT_TARGETS, add_adapters, peft_config, target_modules
from sd_ext.training.lora.class_pictures import with_class_pictures
from sd_ext.training.lora.new_words import Words, add_words, spell_out
from sd_ext.training.lora.result import write_result
from sd_ext.training.lora.start import keep_start, without_start
from sd_ext.training.model.files import ModelFiles
from sd_ext.training.model.pipeline import make_pipeline
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.unet import prepare_unet
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.optimizer.make import LORA_UP
from sd_ext.training.run.previews import labelled_sheet, read_whole_pictures
from sd_ext.training.settings import LoraConfig

DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LoraTask(DiffusionTask):
    """Adapters are trained, and new words; all else is frozen."""

    name = "lora"
    config: LoraConfig

    def __init__(self, config: LoraConfig, files: ModelFiles):
        super().__init__(config, files)
        self.check_words()
        self.trains_text = config.text_encoder or bool(config.tokens)
        self.towers: TextTowers | None = None
        self.new_words: list[Words] = []
        self.at_start: Lora | None = None
        text_ratio = (config.text_encoder_learning_rate or config.learning_rate) / config.learning_rate
        self.ratios = {"towers": text_ratio}
        if config.tokens:
            self.ratios["vectors"] = config.token_learning_rate / config.learning_rate / text_ratio
        if config.lora_plus != 1:
            self.ratios |= dict.fromkeys(LORA_UP, config.lora_plus)
        self.stops = {"vectors": config.token_steps} if config.token_steps else {}

    def complete(self, items: list[Item]) -> list[Item]:
        return with_class_pictures(self.config, items)

    def all_texts(self) -> list[str]:
        return [] if self.trains_text else super().all_texts()

    # The model.

    def make_model(self) -> DiffusionLoss:
        config = self.config
        unet = self.files.load("unet", base_dtype(config)).eval().to(self.device)
        self.base_pictures = self.draw_base(unet)
        if config.base_precision == "int8":
            quantize(unet)
        self.adapt_unet(unet)
        if self.trains_text:
            self.towers = TextTowers.load(self.files, base_dtype(config)).to(self.device)
            self.adapt_towers(self.towers)
        self.model = DiffusionLoss(unet, config.loss, self.towers)
        if config.init in ("pissa", "olora"):
            self.at_start = keep_start(self.adapted(), Path(config.out) / "start.safetensors", self.accelerator)
        return self.model

    def adapted(self) -> dict[str, Any]:
        """The models with adapters, by part."""
        towers = dict(self.towers.encoders) if self.towers is not None and self.config.text_encoder else {}
        return {"unet": self.loss.unet, **towers}

    def adapt_unet(self, unet: Any) -> None:
        config = self.config
        names = target_modules(unet, config.targets, config.blocks)
        add_adapters(unet, peft_config(config, unet, names, config.rank), config.seed)

    def adapt_towers(self, towers: TextTowers) -> None:
        config = self.config
        for number, encoder in enumerate(towers.encoders.values()):
            if config.text_encoder:
                names = target_modules(encoder, TEXT_TARGETS)
                settings = peft_config(config, encoder, names, config.text_encoder_rank or config.rank)
                add_adapters(encoder, settings, config.seed + 1 + number)
            if config.gradient_checkpointing:
                encoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        if config.tokens:
            self.new_words = add_words(towers, config.tokens, config.token_vectors, config.token_init)

    def arrange(self) -> None:
        super().arrange()
        if find_kind(self.config.method).contiguous:  # peft views the factors of convolutions as matrices
            for p in self.model.parameters():
                if p.requires_grad:
                    p.data = p.data.contiguous()

    def build_on_meta(self) -> tuple[Any, TextTowers | None]:
        """U-Net and trained text encoders as they will be, without weights."""
        config, dtype = self.config, base_dtype(self.config)
        with torch.device("meta"):
            made = self.files.without_weights("unet")
            unet = nn.Module.to(made, dtype)  # Diffusers' own warns of modules kept in float32, of which there are none
            self.adapt_unet(unet)
            towers = self.towers_on_meta().to(dtype) if self.trains_text else None
        if towers is not None:
            self.adapt_towers(towers)
        prepare_unet(unet, replace(config, compile=False, attention_backend="default"))
        return unet, towers

    def towers_on_meta(self) -> TextTowers:
        encoders = [self.files.without_weights(part) for part in self.files.text_parts]
        tokenizers = [self.files.load(part.replace("text_encoder", "tokenizer")) for part in self.files.text_parts]
        for encoder in encoders:
            encoder.requires_grad_(False)
        return TextTowers(tokenizers, encoders, self.files.text_parts)

    # Words.

    def words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if self.towers is None:
            return super().words(texts)
        return {"tokens": self.towers.tokenize([self.spelled(text) for text in texts])}

    def check_words(self) -> None:
        """Every new word must stand in a caption: else it would silently stay what it was."""
        for token in self.config.tokens:
            if not any(token in text for text in self.texts):
                raise InputError(
                    f"the new word {token} stands in no caption; write it into captions, instance_prompt or prefix"
                )

    def spelled(self, text: str) -> str:
        return spell_out(text, self.config.tokens, self.config.token_vectors)

    def preview_words(self, text: str) -> dict[str, Tensor]:
        if self.towers is None:
            return super().preview_words(text)
        return self.towers(self.towers.tokenize([self.spelled(text)]).to(self.device))

    # Pictures.

    def draw_base(self, unet: Any) -> list[np.ndarray]:
        """Pictures of the previews' prompts by the base model, from the run's folder if they are there."""
        config, made = self.config, []
        if not self.accelerator.is_main_process or not config.validate_every:
            return made
        said = repr((self.prompts, config.negative_prompt, config.preview_guidance, config.preview_steps,
                     config.preview_seed, config.resolution, self.noise))  # fmt: skip
        folder = Path(config.out) / "previews" / f"base-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
        there = read_whole_pictures(folder, len(self.prompts))
        if there is not None:
            return there
        towers = TextTowers.load(self.files).to(self.device) if self.trains_text else None
        with torch.no_grad():
            pictures = self.draw_prompts(self.drawer(unet), towers)
        with whole.folder(folder, overwrite=True) as new:
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(new / f"{number:04d}.png")
        return pictures

    def drawer(self, unet: Any) -> Any:
        return make_pipeline(self.encoded.vae(), unet, self.noise, None, self.files.family)

    def preview(self) -> Image.Image:
        """Each prompt by the base model and, from the same noise, by the LoRA as it is."""
        pictures = self.draw_prompts(self.drawer(self.unet))
        if self.config.cache:
            self.encoded.release()
        return labelled_sheet({"base": self.base_pictures, "LoRA": pictures}, self.prompts)

    # The result.

    def trained(self) -> Lora:
        """The LoRA of the original base."""
        lora = from_peft(self.adapted(), base=self.files.base)
        return without_start(lora, self.at_start) if self.at_start else lora

    def export(self, new: Path, history: list[dict[str, float]]) -> None:
        pictures = self.draw_prompts(self.drawer(self.unet)) if self.config.validate_every else []
        write_result(self, new, history, pictures)


def base_dtype(config: LoraConfig) -> torch.dtype:
    """What the frozen model is held in; for int8 what it is quantised from."""
    return DTYPES[config.mixed_precision if config.base_precision in ("auto", "int8") else config.base_precision]


def quantize(model: Any) -> None:
    """Hold the weights of linear layers in 8 bits (torchao)."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise InputError("base_precision is int8, which needs torchao: pip install torchao") from error
    quantize_(model, Int8WeightOnlyConfig())
