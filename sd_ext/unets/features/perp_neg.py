"""Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968): of a negative prompt only what the prompt does not say.

With the prediction e for no prompt, c for the prompt and n for the negative one, d = c - e and m = n - e, guidance is
e + w (d - scale m'), where m' is the part of m that is orthogonal to d (sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..inside import mixing
from ..inside.texts import encoded
from .feature import PREDICTION
from .guidance import Calls, Guidance
from .options import Option


class PerpNeg(Guidance):
    """Adds a call of the network for no prompt, and hands the pipeline e and c - scale m' in place of n and c.

    It acts where a batch is said to be guidance; its first half is that of the negative prompt. An empty negative
    prompt changes nothing, up to rounding.

    Options:
        perp_neg_scale: how strongly the negative prompt is avoided; 0 is the pipeline's own guidance, in which the
            negative prompt takes the place of none.
    """

    name = "perpendicular negative"
    options: ClassVar[dict[str, Option]] = {
        "perp_neg_scale": Option(
            0.0,
            float,
            "of the negative prompt only what is orthogonal to the prompt, at this strength (arXiv 2304.04968)",
            lambda value: value >= 0,
            "0 or more",
        ),
    }

    def takes(self) -> Mapping[tuple[str, str], str]:
        """The prediction that other guidance starts from."""
        return {PREDICTION: "perp_neg_scale"}

    def needs(self) -> Mapping[tuple[str, str], str]:
        """The prediction as the network makes it."""
        return {PREDICTION: "perp_neg_scale"}

    def guide(self, calls: Calls) -> torch.Tensor:
        """The prediction for no prompt, and that for the prompt without the negative one's."""
        output = calls.plain()
        if not calls.guided("perp_neg_scale"):
            return output
        negative, conditional = output.chunk(2)
        none = calls.further(self._for_no_prompt(calls), "unconditional")
        towards, away = (conditional - none).float(), (negative - none).float()
        avoided = self.values["perp_neg_scale"] * mixing.project(away, towards, 0.0)
        return torch.cat([none, conditional - avoided.to(conditional.dtype)])

    def _for_no_prompt(self, calls: Calls) -> dict[str, Any]:
        """The arguments of the first half with no prompt in place of the negative one."""
        given, half = calls.inputs["encoder_hidden_states"], calls.half("unconditional", 2)
        text, rows = encoded(self.host, "perp_neg_scale", "", given), len(given) // 2
        half["encoder_hidden_states"] = text.states.expand(rows, -1, -1)
        half["encoder_attention_mask"] = None
        more = half.get("added_cond_kwargs") or {}
        if "text_embeds" in more and text.pooled is not None:
            half["added_cond_kwargs"] = {**more, "text_embeds": text.pooled.expand(rows, -1)}
        return half
