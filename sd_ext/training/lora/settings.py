"""Settings of LoRA training: adapters, text encoders, new words, class pictures, precision of the base, result."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sd_ext.errors import InputError
from sd_ext.hub.finished import FILE_NAME
from sd_ext.lora.kinds import KINDS
from sd_ext.training.lora.rates import check_block_rates
from sd_ext.training.settings.setting import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    Settings,
    contradiction,
    setting,
)


@dataclass(frozen=True)
class AdapterSettings(Settings):
    """The adapters: their kind, their strength, and which modules get one."""

    method: str = setting(
        "lora", "kind of adapter", choices=lambda: tuple(kind.name for kind in KINDS.values() if kind.trainable),
        of_weights=True,
    )  # fmt: skip
    rank: int = setting(16, "rank of the adapters", "N", within=AT_LEAST_1, of_weights=True)
    alpha: float = setting(
        0.0, "network alpha: strength is alpha / rank; 0 for the rank itself", within=NOT_NEGATIVE, of_weights=True
    )
    dropout: float = setting(0.0, "dropout before the adapters", within=BELOW_1)
    rslora: bool = setting(False, "strength alpha / sqrt(rank) (Kalajdzievski 2023)", of_weights=True)
    init: str = setting(
        "default", "start of a LoRA: B = 0 with A uniform or gaussian; pissa and olora start in the base's directions",
        choices=("default", "gaussian", "pissa", "olora"),
    )  # fmt: skip
    targets: tuple[str, ...] = setting(
        ("attention",), "attention, cross_attention, feed_forward, projection, resnet, sampler, all, or ends of names",
        "NAME,...", of_weights=True,
    )  # fmt: skip
    blocks: tuple[str, ...] = setting(
        (), "only in modules whose names start so, e.g. up_blocks; none: all", "NAME,...", of_weights=True
    )
    conv_rank: int = setting(0, "rank in convolutions; 0 for the same", "N", within=NOT_NEGATIVE, of_weights=True)
    conv_alpha: float = setting(
        0.0, "alpha in convolutions; 0 for the same share of the rank", within=NOT_NEGATIVE, of_weights=True
    )
    lokr_factor: int = setting(-1, "LoKr's decomposition factor; -1 for the most square", "N", of_weights=True)
    lora_plus: float = setting(
        1.0, "learning rate of B beside A's (LoRA+, Hayou et al. 2024); 1 for the same", within=POSITIVE
    )
    block_rates: tuple[str, ...] = setting(
        (), "learning rate by block, as a share: up_blocks=0.5,mid_block=0; or 12 to 26 numbers, or OUTD and the like",
        "NAME=SHARE,...",
    )  # fmt: skip

    @property
    def changes_base(self) -> bool:
        """Whether the initialisation subtracts the adapters' initial product from the base's weights."""
        return self.init in ("pissa", "olora")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise InputError("targets is empty; name at least one kind of module")
        for spec in fields(self):
            able = [kind.name for kind in KINDS.values() if spec.name in kind.options]
            if able and self.method not in able and getattr(self, spec.name) != spec.default:
                raise contradiction(f"{spec.name} is for method = {' or '.join(able)}, not {self.method}")
        check_block_rates(self.block_rates)
        if self.changes_base and self.method == "dora":
            raise contradiction(f"init = {self.init} moves the base that DoRA's magnitudes are measured on")


@dataclass(frozen=True)
class TextEncoderSettings(Settings):
    """Adapters of the text encoders."""

    text_encoder: bool = setting(False, "train a LoRA of the text encoders too", of_weights=True)
    text_encoder_rank: int = setting(0, "its rank; 0 for the same", "N", within=NOT_NEGATIVE, of_weights=True)
    text_encoder_learning_rate: float = setting(0.0, "its learning rate; 0 for the same", "LR", within=NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("text_encoder_rank", "text_encoder_learning_rate"):
            if getattr(self, name) and not self.text_encoder:
                raise contradiction(f"{name} without text_encoder = true")


@dataclass(frozen=True)
class WordSettings(Settings):
    """New words (textual inversion)."""

    tokens: tuple[str, ...] = setting(
        (), "new words to learn (textual inversion), e.g. <cat-toy>", "TOKEN,...", of_weights=True
    )
    token_vectors: int = setting(1, "vectors of each", "N", within=AT_LEAST_1, of_weights=True)
    token_init: str = setting("", "known word they start from; none: the mean of all", "WORD")
    token_learning_rate: float = setting(
        0.0, "their learning rate; 0 for 5e-4 with adamw, and what is usual beside it with others", "LR",
        within=NOT_NEGATIVE,
    )  # fmt: skip
    token_steps: int = setting(
        0, "steps after which they stay as they are (pivotal tuning); 0 for all", "STEPS", within=NOT_NEGATIVE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        words = " ".join(self.tokens).split()
        if words != list(self.tokens) or len(set(words)) < len(words):
            raise InputError(f"tokens are {', '.join(map(repr, self.tokens))}; give different words without spaces")
        for name, unset in {"token_init": "", "token_vectors": 1, "token_steps": 0, "token_learning_rate": 0.0}.items():
            if getattr(self, name) != unset and not self.tokens:
                raise contradiction(f"{name} without tokens")


@dataclass(frozen=True)
class ClassSettings(Settings):
    """Prior preservation: pictures of the class that the subject belongs to."""

    class_data: str = setting("", "pictures for prior preservation; what is missing is generated", "DIR", free=True)
    class_prompt: str = setting("", "caption of the class pictures", "TEXT")
    class_images: int = setting(100, "class pictures", "N", within=AT_LEAST_1)
    prior_weight: float = setting(1.0, "weight of their loss", within=NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.class_data) != bool(self.class_prompt):
            raise contradiction("prior preservation takes both class_data and class_prompt")


@dataclass(frozen=True)
class MemorySettings(Settings):
    """What the frozen model is held in."""

    base_precision: str = setting(
        "auto",
        "the frozen model's numbers; auto: those of mixed_precision",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
        packages={"int8": "torchao"},
    )
    memory_check: bool = setting(True, "refuse a run that needs more memory than there is", free=True)


@dataclass(frozen=True)
class ResultSettings(Settings):
    """The files a finished run leaves, and where they are published."""

    name: str = setting("lora", "of the files and the model card", "NAME", free=True)
    save_dtype: str = setting("fp32", "numbers in the saved files", choices=("fp32", "fp16", "bf16"))
    push_to_hub: str = setting("", "publish the result there", "REPO_ID", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not FILE_NAME.fullmatch(self.name):
            raise InputError(f"name is {self.name}; it must be a plain file name that starts with a letter or digit")
