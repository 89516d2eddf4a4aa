"""Settings of `train_lora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sd_ext.errors import InputError
from sd_ext.hub.finished import FILE_NAME
from sd_ext.training.settings.base import setting
from sd_ext.training.settings.diffusion import DiffusionConfig


@dataclass(frozen=True)
class LoraConfig(DiffusionConfig):
    """Settings of `train_lora`."""

    section: ClassVar[str] = "lora"
    presets: ClassVar[dict[str, str]] = {name: f"lora_{name}.toml" for name in ("embedded", "sd15", "sd21", "sdxl")}
    plan: ClassVar[str] = "sd_ext.training.lora.plan:plan_lora"

    name: str = setting("lora", "of the files and the model card", "NAME", free=True)
    resolution: tuple[int, ...] = setting(  # type: ignore[assignment]
        (512,), "pictures have about this side squared in area; several: each it is large enough for", "PIXELS,..."
    )
    buckets: bool = setting(True, "keep the pictures' proportions (else all are cut to squares)")
    batch_size: int = setting(1, "pictures per process in one forward pass", "N")
    learning_rate: float = setting(1e-4, "the highest learning rate", "LR")
    warmup: int = setting(0, "steps over which the learning rate rises from 0", "STEPS")
    beta2: float = setting(0.999, "second decay rate of adamw")
    ema: float = setting(0.0, "decay of the averaged weights, which are what is saved; 0 for no averaging")

    method: str = setting("lora", "kind of adapter", choices=("lora", "dora", "loha", "lokr"))
    rank: int = setting(16, "rank of the adapters", "N")
    alpha: float = setting(0.0, "network alpha: strength is alpha / rank; 0 for the rank itself")
    dropout: float = setting(0.0, "dropout before the adapters")
    rslora: bool = setting(False, "strength alpha / sqrt(rank) (Kalajdzievski 2023)")
    init: str = setting(
        "default", "start of a LoRA: B = 0 with A uniform or gaussian; pissa and olora start in the base's directions",
        choices=("default", "gaussian", "pissa", "olora"),
    )  # fmt: skip
    targets: tuple[str, ...] = setting(
        ("attention",), "attention, cross_attention, feed_forward, projection, resnet, sampler, all, or ends of names",
        "NAME,...",
    )  # fmt: skip
    blocks: tuple[str, ...] = setting((), "only in modules whose names start so, e.g. up_blocks; none: all", "NAME,...")
    conv_rank: int = setting(0, "rank in convolutions; 0 for the same", "N")
    conv_alpha: float = setting(0.0, "alpha in convolutions; 0 for the same share of the rank")
    lokr_factor: int = setting(-1, "LoKr's decomposition factor; -1 for the most square", "N")
    lora_plus: float = setting(1.0, "learning rate of B beside A's (LoRA+, Hayou et al. 2024); 1 for the same")
    text_encoder: bool = setting(False, "train a LoRA of the text encoders too")
    text_encoder_rank: int = setting(0, "its rank; 0 for the same", "N")
    text_encoder_learning_rate: float = setting(0.0, "its learning rate; 0 for the same", "LR")

    tokens: tuple[str, ...] = setting((), "new words to learn (textual inversion), e.g. <cat-toy>", "TOKEN,...")
    token_vectors: int = setting(1, "vectors of each", "N")
    token_init: str = setting("", "known word they start from; none: the mean of all", "WORD")
    token_learning_rate: float = setting(5e-4, "their learning rate", "LR")
    token_steps: int = setting(0, "steps after which they stay as they are (pivotal tuning); 0 for all", "STEPS")

    class_data: str = setting("", "pictures for prior preservation; what is missing is generated", "DIR", free=True)
    class_prompt: str = setting("", "caption of the class pictures", "TEXT")
    class_images: int = setting(100, "class pictures", "N")
    prior_weight: float = setting(1.0, "weight of their loss")

    base_precision: str = setting(
        "auto",
        "the frozen model's numbers; auto: those of mixed_precision",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
    )
    memory_check: bool = setting(True, "refuse a run that needs more memory than there is", free=True)
    save_dtype: str = setting("fp32", "numbers in the saved files", choices=("fp32", "fp16", "bf16"))
    push_to_hub: str = setting("", "publish the result there", "REPO_ID", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "token_vectors", "class_images"):
            self._need(name, getattr(self, name) >= 1, "at least 1")
        for name in ("alpha", "conv_rank", "conv_alpha", "text_encoder_rank", "text_encoder_learning_rate",
                     "prior_weight", "token_steps"):  # fmt: skip
            self._need(name, getattr(self, name) >= 0, "0 or more")
        for name in ("lora_plus", "token_learning_rate"):
            self._need(name, getattr(self, name) > 0, "more than 0")
        self._need("dropout", 0 <= self.dropout < 1, "from 0 up to, not including, 1")
        self._need("name", bool(FILE_NAME.fullmatch(self.name)), "a plain file name that starts with a letter or digit")
        words = " ".join(self.tokens).split()
        if words != list(self.tokens) or len(set(words)) < len(words):
            raise InputError(f"tokens are {', '.join(map(repr, self.tokens))}; give different words without spaces")
        if not self.targets:
            raise InputError("targets is empty; name at least one kind of module")

    def _contradictions(self) -> None:
        super()._contradictions()

        def refuse(message: str) -> None:
            raise InputError(f"settings contradict each other: {message}")

        if self.init != "default" and self.method not in ("lora", "dora"):
            refuse(f"init = {self.init} is for method = lora or dora, not {self.method}")
        if self.base_precision in ("bf16", "fp16") and self.base_precision != self.mixed_precision:
            refuse(f"weights in {self.base_precision} need passes in it: set mixed_precision = {self.base_precision}")
        if self.lokr_factor != -1 and self.method != "lokr":
            refuse(f"lokr_factor is for method = lokr, not {self.method}")
        if self.init in ("pissa", "olora") and self.method == "dora":
            refuse(f"init = {self.init} moves the base that DoRA's magnitudes are measured on")
        if self.init in ("pissa", "olora") and self.base_precision == "int8":
            refuse(f"init = {self.init} changes base weights, which int8 cannot hold")
        if self.method in ("loha", "lokr") and (self.rslora or self.lora_plus != 1):
            refuse(f"rslora and lora_plus are for method = lora or dora, not {self.method}")
        if self.text_encoder_rank and not self.text_encoder:
            refuse("text_encoder_rank without text_encoder = true")
        if self.text_encoder_learning_rate and not self.text_encoder:
            refuse("text_encoder_learning_rate without text_encoder = true")
        if (self.class_data or self.class_prompt) and not (self.class_data and self.class_prompt):
            refuse("prior preservation takes both class_data and class_prompt")
        for name, normal in {"token_init": "", "token_vectors": 1, "token_steps": 0}.items():
            if getattr(self, name) != normal and not self.tokens:
                refuse(f"{name} without tokens")
