"""A denoiser whose network is given the guidance scale, as a student of a range of scales is."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from dsno.diffusion.conditions import GUIDANCE_SCALE, Condition
from dsno.diffusion.denoisers import Denoiser
from dsno.operator.batch_plan import BatchState, ShiftHook
from dsno.operator.guidance_embedding import SiteShifts
from dsno.operator.lift import Lifted
from dsno.operator.temporal import SliceLayout
from dsno.support.errors import InputError


class ScaledDenoiser(Denoiser):
    """A copy of a denoiser to which the guidance scale is one condition more.

    It enters where it enters a student, as a bias behind submodules that is zero at first: until it
    is trained the copy gives what the original does, at every scale.

    Args:
        original: what is copied; it is not changed.
        sites: names of the submodules of its network.
        channels: of the output of each.
        channel_dim: where those outputs have their channels.
    """

    def __init__(
        self, original: Denoiser, sites: Sequence[str], channels: Sequence[int], channel_dim: int
    ) -> None:
        super().__init__(
            copy.deepcopy(original.network),
            original.schedule,
            prediction_type=original.preconditioning.prediction_type,
            sample_shape=original.sample_shape,
            sigma_data=original.sigma_data,
            time_input=original.preconditioning.time_input,
            call=original.call,
            clip_sample=original.clip_sample,
            dynamic_threshold=original.dynamic_threshold,
        )
        self.shifts = SiteShifts(channels)
        self.state = BatchState(SliceLayout(1), self.shifts)
        for index, site in enumerate(sites):
            hook = ShiftHook(index, self.state, channel_dim)
            self.network.get_submodule(site).register_forward_hook(hook)

    @classmethod
    def like(cls, original: Denoiser, lifted: Lifted) -> ScaledDenoiser:
        """With the scale where it enters a network that was lifted from the original's."""
        config = lifted.config
        return cls(original, config.sites, lifted.channels, config.channel_dim)

    def network_output(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """As of a `Denoiser`, of a condition with `guidance_scale` (batch,).

        Raises:
            InputError: if the scale is missing.
        """
        given = dict(condition or {})
        if GUIDANCE_SCALE not in given:
            raise InputError("This denoiser needs guidance_scale, one number per sample.")
        before = self.state.embedding
        self.state.embedding = self.shifts.embedding(given.pop(GUIDANCE_SCALE))
        output = super().network_output(x, t, given)
        if not torch.is_grad_enabled():
            # gradient checkpointing runs a pass with gradients again in its backward pass
            self.state.embedding = before
        return output
