"""What a kind of adapter (LoRA, LoHa, ...) must say about itself; all else in the package asks it and names none.

A kind changes a weight W of shape (out, in), or (out, in, k, k) of a convolution, by means of a few small tensors. It
says what these tensors are called in each file format, what they add to W, and how peft trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import InputError

if TYPE_CHECKING:
    from torch import Size, Tensor

Tensors = Mapping[str, "Tensor"]


class Kind:
    """Base of every kind.

    Whatever it is, it says `name`, `factors` and `kohya`. One that adds the same to every W says `product`, and `rank`
    where it has one. One whose change depends on W says `delta`, `shape`, `check_weight` and `decisive` instead.

    Attributes:
        name: "lora", "loha", ...: `Adapter.kind`, the training setting `method`, and `algo` in kohya's header.
        factors: the sets of tensors that an adapter of this kind can be made of.
        beside: for a kind that changes what another one does, the tensor by which it is known, which lies beside the
            other's (DoRA's magnitudes); "" for all others. See `over`.
        kohya: in kohya's format, what follows a module's name -> the tensor that it is. Of several spellings of one
            tensor the first is written.
        dotted: the same in formats with dotted names: Diffusers', its older ones, and peft's.
        in_diffusers: whether Diffusers' own loader reads the kind, so that its format can hold it.
        flag: the argument of peft's LoraConfig that switches on a kind which lies beside LoRA.
        plain: whether it is LoRA alone: W' = W + scale * up @ down.
        network: `ss_network_module` in kohya's header: the trainer that such files come from.
        network_args: entries of `ss_network_args` in kohya's header, beside `algo`.
        peft_type: what peft calls the kind in adapter_config.json; "" where it has none.
        options: the training settings that concern this kind but not every kind.
        contiguous: whether peft needs the trained factors contiguous, whatever the model's memory format.
    """

    name: str = ""
    factors: tuple[frozenset[str], ...] = ()
    beside: str = ""
    kohya: Mapping[str, str] = {}
    dotted: Mapping[str, str] = {}
    in_diffusers: bool = False
    flag: str = ""
    plain: bool = False
    network: str = "lycoris.kohya"
    network_args: Mapping[str, Any] = {}
    peft_type: str = ""
    options: frozenset[str] = frozenset()
    contiguous: bool = False

    # The change it makes.

    def product(self, tensors: Tensors) -> Tensor:
        """What is added to W at scale 1.

        Args:
            tensors: all in one dtype, on one device; the meta device, where only the shape is asked for.

        Returns:
            (out, in), (out, in, k, k) or (out, in * k * k).

        Raises:
            InputError: it depends on W.
        """
        raise InputError(f"what a {self.name} adds depends on the base's weight; give the weight")

    def rank(self, tensors: Tensors) -> int:
        """The inner size; 0 where there is none."""
        return 0

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """What the product is multiplied by: alpha / rank; without a rank 1, as LyCORIS and every reader has it."""
        rank = self.rank(tensors)
        return alpha / rank if rank else 1.0

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        """W' - W, in float32.

        Args:
            tensors: of any dtype, on any device.
            scale: see `scale`.
            weight: W, of any dtype; None where it is not known.

        Returns:
            In the shape of `weight`, or without it in that of `product`.

        Raises:
            InputError: the change depends on W, and `weight` is None.
        """
        added = self.product({name: tensor.detach().float() for name, tensor in tensors.items()}) * scale
        return added if weight is None else added.to(weight.device).reshape(weight.shape)

    def decisive(self, tensors: Tensors, scale: float) -> list[Tensor]:
        """Float tensors on which the change of any W depends: two adapters do the same where these are the same."""
        return [self.delta(tensors, scale, None)]

    def two_factors(self, tensors: Tensors) -> tuple[Tensor, Tensor] | None:
        """`up` (out, rank) and `down` (rank, in * k * k) in float32, whose product is `product`; None: it has none."""
        return None

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor] | None:
        """Tensors of the same dtypes whose product is `factor` times as large; None: the kind has no place for it."""
        return None

    # What fits.

    def shape(self, tensors: Tensors) -> Size | None:
        """The shape of `product`; None where the tensors fit weights of several shapes."""
        return self.product({name: tensor.detach().to("meta") for name, tensor in tensors.items()}).shape

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        """Raise `InputError` for tensors that are wrong, though `shape` could be told."""

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        """Raise `InputError` unless it fits a W of `shape`; a 1 x 1 convolution fits a linear layer."""
        own = self.shape(tensors)
        if own is not None and (own.numel() != shape.numel() or own[0] != shape[0]):
            raise InputError(f"made for a weight of {tuple(own)}, and the base has {tuple(shape)}")

    # Files and models.

    def complete(self, tensors: Tensors) -> dict[str, Tensor]:
        """What was read, in the form that `factors` means.

        Raises:
            InputError: the tensors do not fit together.
        """
        return dict(tensors)

    def for_kohya(self, tensors: Tensors) -> dict[str, Tensor]:
        """The tensors by what follows the module's name in kohya's format."""
        return spelled(self.kohya, tensors)

    def for_diffusers(self, tensors: Tensors, part: str) -> dict[str, Tensor]:
        """The tensors by what follows the module's name in Diffusers' format.

        Args:
            tensors: the adapter's.
            part: of the pipeline: "unet", "text_encoder" or "text_encoder_2".

        Raises:
            InputError: Diffusers' loader cannot read it. The message lacks its subject, the module.
        """
        if not self.in_diffusers:
            raise InputError(
                f"is a {self.name}, which Diffusers' loader cannot read; write kohya's format, or turn it into "
                "plain LoRA (sd_ext.lora.resize, sd-ext convert resize), which says what that costs"
            )
        return spelled(self.dotted, tensors)

    def from_training(self, tensors: dict[str, Tensor], alpha: float, rank: int) -> tuple[dict[str, Tensor], float]:
        """Tensors and alpha as files hold them, of an adapter whose strength in training was alpha / rank."""
        return tensors, alpha / rank * self.rank(tensors)

    def peft_config(self, shared: dict[str, Any], alpha: float, init: str | bool, settings: Any) -> Any:
        """peft's configuration of new adapters.

        Args:
            shared: `r`, `target_modules`, `rank_pattern` and `alpha_pattern`, which all kinds of peft's have.
            alpha: network alpha.
            init: how a LoRA begins, by peft's names; True is peft's own way.
            settings: the run's settings of adapters: `dropout`, and those of `options`.

        Raises:
            InputError: the kind is read and written, but not trained.
        """
        raise InputError(f"adapters of the kind {self.name} cannot be trained here")

    # Beside another kind.

    def over(self, kind: Kind) -> Kind:
        """The kind that `kind` becomes where the tensor `beside` lies beside its own."""
        raise NotImplementedError


def spelled(spellings: Mapping[str, str], tensors: Tensors) -> dict[str, Tensor]:
    """The tensors by their first spelling; those without one are left out."""
    first: dict[str, str] = {}
    for spelling, name in spellings.items():
        first.setdefault(name, spelling)
    return {first[name]: tensor for name, tensor in tensors.items() if name in first}
