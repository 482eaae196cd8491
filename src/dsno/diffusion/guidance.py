"""Classifier-free guidance around a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from dsno.diffusion.conditions import GUIDANCE_SCALE, Condition
from dsno.diffusion.denoisers import Denoiser, expand
from dsno.support.errors import InputError


class GuidedDenoiser:
    """Classifier-free guidance: clip(D_null + scale (D_cond - D_null)), two evaluations in a batch.

    The two predictions are combined before they are clipped or thresholded, as samplers do that
    guide the network's output: clipped first they would add up to 2 scale - 1 times the limit.

    Args:
        inner: a conditional denoiser; it clips if it clips when called alone.
        scale: 1 is the conditional model, 0 the unconditional one; None to read it, for each
            sample, from `condition["guidance_scale"]` (batch,).
        null_condition: the "no condition" values, one per key of the condition, without batch.

    Sources: Ho & Salimans, arXiv 2207.12598, eq. 6 (with scale = 1 + w); for the order Saharia et
    al., arXiv 2205.11487, section 2.3.
    """

    evaluations = 2

    def __init__(self, inner: Denoiser, scale: float | None, null_condition: Condition) -> None:
        self.inner = inner
        self.schedule = inner.schedule
        self.sample_shape = inner.sample_shape
        self.sigma_data = inner.sigma_data
        self.scale = scale
        self.null_condition = null_condition

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None = None, /) -> Tensor:
        """The guided D(x, t).

        Raises:
            InputError: if the condition's names are not those of the null condition, or the scale
                is missing.
        """
        given = dict(condition or {})
        scale: Tensor | float | None = self.scale
        if scale is None and GUIDANCE_SCALE in given:
            scale = expand(given.pop(GUIDANCE_SCALE), x)
        if scale is None or set(given) != set(self.null_condition):
            wanted = sorted(
                [*self.null_condition, *([GUIDANCE_SCALE] if self.scale is None else [])]
            )
            raise InputError(
                f"Guidance was set up for the condition {wanted}, "
                f"but the call gives {sorted(condition or {})}."
            )
        both = {k: torch.cat([v, self.null_condition[k].expand_as(v)]) for k, v in given.items()}
        times = t if t.ndim == 0 else torch.cat([t, t])
        conditional, null = self.inner.unclipped(torch.cat([x, x]), times, both).chunk(2)
        return self.inner.clip(null + scale * (conditional - null))

    def to(self, device: torch.device) -> GuidedDenoiser:
        """The same with its network and its null condition on a device."""
        null = {name: tensor.to(device) for name, tensor in self.null_condition.items()}
        return GuidedDenoiser(self.inner.to(device), self.scale, null)
