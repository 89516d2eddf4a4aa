"""`Kind`: what a kind of adapter (LoRA, LoHa, ...) must define. The rest of the package works through it alone.

A kind changes a weight W of shape (out, in), or of a convolution (out, in, k, k), by a few small tensors. It defines
how these tensors are named in each file format, what they add to W, and how peft trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import InputError

if TYPE_CHECKING:
    from torch import Size, Tensor

Tensors = Mapping[str, "Tensor"]
AS_PLAIN = "turn it into plain LoRA (sd_ext.lora.resize, sd-ext convert resize {}), which says what that costs"
NEEDED = "depends on the base's weight; give the base (--base-model MODEL, base=..., weight=...)"


def one(kind: str) -> str:
    """The name of a kind with its article: "a lora", "an oft"."""
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}"


class Kind:
    """Base of all kinds.

    Every kind defines `name`, `factors` and `kohya`. A kind that adds the same to any W also defines `product`, and
    `rank` if it has one. A kind whose change depends on W defines `delta`, `shape`, `check_weight` and `decisive`
    instead.

    Attributes:
        name: "lora", "loha", ...: `Adapter.kind`, the training setting `method`, and `algo` in kohya's header.
        factors: the sets of tensor names that an adapter of this kind may consist of.
        beside: for a kind that modifies another kind: the name of the tensor that it adds to the other's (DoRA's
            magnitudes); "" for all others. See `over`.
        kohya: in kohya's format, what follows a module's name -> tensor name. If several spellings stand for one
            tensor, the first is used for writing.
        dotted: the same for formats with dotted names: Diffusers', its older ones, and peft's.
        elsewhere: the same for what is no weight of a linear layer or convolution, by what it is: "bias", "norm",
            "norm bias". Formats with dotted names have the same spellings.
        has_alpha: whether files hold an alpha beside the tensors.
        in_diffusers: whether Diffusers' own loader reads the kind, so that it can be written in Diffusers' format.
        flag: the argument of peft's LoraConfig that switches on a kind that modifies LoRA.
        plain: whether it is LoRA alone: W' = W + scale * up @ down.
        network: `ss_network_module` in kohya's header, the trainer module for such files.
        network_args: entries of `ss_network_args` in kohya's header, besides `algo`.
        peft_type: peft's name of the kind in adapter_config.json; "" if it has none.
        options: the training settings that apply to this kind but not to every kind.
        contiguous: whether peft needs contiguous factors for training, whatever the model's memory format.
    """

    name: str = ""
    factors: tuple[frozenset[str], ...] = ()
    beside: str = ""
    kohya: Mapping[str, str] = {}
    dotted: Mapping[str, str] = {}
    elsewhere: Mapping[str, Mapping[str, str]] = {}
    has_alpha: bool = True
    in_diffusers: bool = False
    flag: str = ""
    plain: bool = False
    network: str = "lycoris.kohya"
    network_args: Mapping[str, Any] = {}
    peft_type: str = ""
    options: frozenset[str] = frozenset()
    contiguous: bool = False

    # How it changes W.

    def product(self, tensors: Tensors) -> Tensor:
        """The matrix that is added to W at scale 1.

        Args:
            tensors: all of one dtype and on one device; on the meta device if only the shape is wanted.

        Returns:
            (out, in), (out, in, k, k) or (out, in * k * k).

        Raises:
            InputError: for this kind it depends on W.
        """
        raise InputError(f"what {one(self.name)} adds {NEEDED}")

    def rank(self, tensors: Tensors) -> int:
        """The inner size of the factors; 0 if there is none."""
        return 0

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """The factor that the product is multiplied by: alpha / rank, or 1 without a rank (as in LyCORIS)."""
        rank = self.rank(tensors)
        return alpha / rank if rank else 1.0

    def usual_alpha(self, tensors: Tensors) -> float:
        """The alpha of an adapter of which nothing says one: the rank, which makes the scale 1."""
        return float(self.rank(tensors) or 1)

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        """The change W' - W.

        Args:
            tensors: of any dtype, on any device.
            scale: see `scale`.
            weight: W, of any dtype; None if it is not known.

        Returns:
            float32, in the shape of `weight` if given, else in that of `product`.

        Raises:
            InputError: the change depends on W, and `weight` is None.
        """
        added = self.product({name: tensor.detach().float() for name, tensor in tensors.items()}) * scale
        return added if weight is None else added.to(weight.device).reshape(weight.shape)

    def decisive(self, tensors: Tensors, scale: float) -> list[Tensor]:
        """Float tensors that determine the change of any W: adapters with equal ones make the same change."""
        return [self.delta(tensors, scale, None)]

    def two_factors(self, tensors: Tensors) -> tuple[Tensor, Tensor] | None:
        """Write `product` as up @ down.

        Returns:
            `up` (out, rank) and `down` (rank, in * k * k), float32; None if this kind's product is not of that form.
        """
        return None

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor] | None:
        """Tensors of the same dtypes whose product is `factor` times as large; None if the kind has none such."""
        return None

    # Shapes.

    def shape(self, tensors: Tensors) -> Size | None:
        """The shape of `product`; None if the tensors fit weights of several shapes."""
        return self.product({name: tensor.detach().to("meta") for name, tensor in tensors.items()}).shape

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        """Raise `InputError` for tensors that are wrong although their `shape` could be computed."""

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        """Raise `InputError` unless the tensors fit a W of `shape`.

        A 1 x 1 convolution and a linear layer fit each other.
        """
        own = self.shape(tensors)
        if own is not None and (own.numel() != shape.numel() or own[0] != shape[0]):
            raise InputError(f"made for a weight of {tuple(own)}, and the base has {tuple(shape)}")

    # Files and models.

    def configured(self, tensors: Tensors, settings: Mapping[str, Any], path: str) -> dict[str, Tensor]:
        """Tensors as they were read, made what peft's settings (adapter_config.json) say they are.

        Args:
            tensors: as they were read.
            settings: peft's.
            path: the module's.

        Raises:
            InputError: they are not such tensors.
        """
        return dict(tensors)

    def complete(self, tensors: Tensors) -> dict[str, Tensor]:
        """Convert tensors as they were read to one of the sets in `factors`.

        Raises:
            InputError: the tensors do not fit together.
        """
        return dict(tensors)

    def rank_stabilised(self, tensors: Tensors, alpha: float) -> tuple[dict[str, Tensor], float] | None:
        """Tensors and alpha that make the change of a training with LyCORIS's `rs_lora`, given those of its file.

        None for kinds whose files have the right alpha already.
        """
        return None

    def of_bias(self, tensors: Tensors, scale: float) -> tuple[str, dict[str, Tensor]] | None:
        """Of tensors as they were read: what changes the module's bias as well, as a kind and its tensors; or None.

        Args:
            tensors: as they were read.
            scale: see `scale`.
        """
        return None

    def for_kohya(self, tensors: Tensors, of: str = "weight") -> dict[str, Tensor]:
        """The tensors to write in kohya's format, by what follows the module's name in their keys.

        Args:
            tensors: the adapter's.
            of: what it changes: "weight", or a key of `elsewhere`.

        Raises:
            InputError: the format has no names for this. The message is to follow the module's name.
        """
        if of == "weight":
            return spelled(self.kohya, tensors)
        if of not in self.elsewhere:
            raise InputError(
                f"is {one(self.name)} of a {of}, for which kohya's format has no names; "
                f"{AS_PLAIN.format('--base-model')}"
            )
        return spelled(self.elsewhere[of], tensors)

    def for_diffusers(self, tensors: Tensors, part: str) -> dict[str, Tensor]:
        """The tensors to write in Diffusers' format, by what follows the module's name in their keys.

        Args:
            tensors: the adapter's.
            part: the part of the pipeline: "unet", "text_encoder" or "text_encoder_2".

        Raises:
            InputError: Diffusers' loader cannot read this. The message is to follow the module's name.
        """
        if not self.in_diffusers:
            raise InputError(
                f"is {one(self.name)}, which Diffusers' loader cannot read; write kohya's format, or "
                f"{AS_PLAIN.format('--plain')}"
            )
        return spelled(self.dotted, tensors)

    def from_training(self, tensors: dict[str, Tensor], alpha: float, rank: int) -> tuple[dict[str, Tensor], float]:
        """Convert a trained adapter to the tensors and alpha that are written to files.

        Args:
            tensors: as trained; the strength in training was alpha / rank.
            alpha, rank: as configured for training.

        Returns:
            The tensors, and an alpha such that the change is the same.
        """
        return tensors, alpha / rank * self.rank(tensors)

    @property
    def trainable(self) -> bool:
        """Whether adapters of this kind can be trained here, not only read, applied and written."""
        return type(self).peft_config is not Kind.peft_config

    def peft_config(self, shared: dict[str, Any], alpha: float, init: str | bool, settings: Any) -> Any:
        """peft's configuration for training new adapters of this kind.

        Args:
            shared: `r`, `target_modules`, `rank_pattern` and `alpha_pattern`, which all of peft's configurations have.
            alpha: network alpha.
            init: how a LoRA is initialised, by peft's names; True is peft's default.
            settings: the run's adapter settings: `dropout`, and those in `options`.

        Raises:
            InputError: this kind can be read and written, but not trained.
        """
        raise InputError(f"adapters of the kind {self.name} cannot be trained here")

    # For kinds that modify another kind.

    def over(self, kind: Kind) -> Kind:
        """The kind that results when `kind` is modified by this one."""
        raise NotImplementedError


def spelled(spellings: Mapping[str, str], tensors: Tensors) -> dict[str, Tensor]:
    """Rename tensors to their first spelling; tensors without one are dropped.

    Args:
        spellings: what follows a module's name in a file -> tensor name.
        tensors: by tensor name.
    """
    first: dict[str, str] = {}
    for spelling, name in spellings.items():
        first.setdefault(name, spelling)
    return {first[name]: tensor for name, tensor in tensors.items() if name in first}
