"""Losses: denoising for the teacher, distance between trajectories for the operator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import Denoiser, expand
from dsno.diffusion.schedules import NoiseSchedule
from dsno.operator.dsno import DSNO
from dsno.recipes.choices import Loss, SliceWeight
from dsno.support.errors import InputError, one_of


def _l1(error: Tensor, _delta: float) -> Tensor:
    return error.abs()


def _l2(error: Tensor, _delta: float) -> Tensor:
    return error.square()


def _pseudo_huber(error: Tensor, delta: float) -> Tensor:
    return (error.square() + delta**2).sqrt() - delta


DISTANCES: dict[Loss, Callable[[Tensor, float], Tensor]] = {
    "l1": _l1,
    "l2": _l2,
    "pseudo_huber": _pseudo_huber,
}
"""Elementwise distances; at `delta` pseudo-Huber turns from square to absolute."""

LPIPS_VGG: Loss = "lpips_vgg"
"""The distance of whole images in VGG16's features (`dsno.training.lpips`)."""

LOSSES: tuple[Loss, ...] = get_args(Loss)
"""Names of the losses that `trajectory_loss` takes."""

WEIGHTS: tuple[SliceWeight, ...] = get_args(SliceWeight)


def slice_weights(
    kind: str, schedule: NoiseSchedule, times: Tensor, *, weight_max: float, sigma_data: float = 1.0
) -> Float[Tensor, " M"]:
    """Weights of the output times, normalised to mean 1, float64.

    `sqrt_snr`: alpha sigma_data / sigma clamped to [1, weight_max] (arXiv 2211.13449, eq. 10; the
    authors' code uses weight_max = 1e4, which leaves 0.14 % of the weight to the times other than
    t = 0); `flat`: all equal.

    Raises:
        InputError: for an unknown kind.
    """
    if one_of(kind, WEIGHTS, "weight") == "flat":
        return torch.ones(len(times), dtype=torch.float64)
    ratio = torch.exp(schedule.log_snr(times.double()) / 2) * sigma_data
    weights = ratio.clamp(1, max(weight_max, 1))
    return weights / weights.mean()


def trajectory_loss(
    predicted: Float[Tensor, "batch M *shape"],
    target: Float[Tensor, "batch M *shape"],
    weights: Float[Tensor, " M"],
    *,
    distance: str = "l1",
    delta: float = 0.03,
    perceptual: nn.Module | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " M"]]:
    """Mean over times of weight times distance, and the unweighted distance at each time.

    States are expected divided by `state_scale`, so that no time of a variance-exploding schedule
    drowns the others; for variance-preserving ones that divides by 1.

    Args:
        predicted: states of the operator.
        target: states of the teacher.
        weights: of the times, see `slice_weights`.
        distance: one of `LOSSES`. `lpips_vgg` compares the states as they are, noise included and
            not clipped, as the code of the paper's authors does for CIFAR-10.
        delta: of `pseudo_huber`.
        perceptual: of `lpips_vgg`: a distance of image batches, (n, C, H, W) twice -> (n,).

    Raises:
        InputError: for an unknown distance, or `lpips_vgg` without its network.
    """
    known = one_of(distance, LOSSES, "loss")
    if known == LPIPS_VGG:
        error = _perceptual_error(predicted, target, perceptual)
    else:
        error = DISTANCES[known](predicted - target, delta)
    per_time = error.transpose(0, 1).flatten(1).mean(1)
    return (per_time * weights.to(per_time)).mean(), per_time.detach()


def _perceptual_error(
    predicted: Tensor, target: Tensor, perceptual: nn.Module | None
) -> Float[Tensor, "batch M"]:
    if perceptual is None:
        raise InputError(
            "`train.loss` = lpips_vgg needs the weights of VGG16: give train.vgg16=PATH, a file "
            "made by tools/convert_vgg16.py, or choose another loss."
        )
    distances: Tensor = perceptual(predicted.flatten(0, 1), target.flatten(0, 1))
    return distances.reshape(predicted.shape[:2])


def denoising_loss(
    denoiser: Denoiser,
    clean: Float[Tensor, "batch *shape"],
    noise: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
    condition: Condition | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the network's own output F, i.e. of D with weight 1 / c_out(t)^2.

    That is the plain epsilon loss for epsilon prediction (arXiv 2006.11239, eq. 14), 1 + SNR for
    v-prediction (arXiv 2202.00512, section 4) and EDM's lambda (arXiv 2206.00364, section 5).
    """
    schedule = denoiser.schedule
    wide = clean.double()
    alpha, sigma = (expand(f(t.double()), wide) for f in (schedule.alpha, schedule.sigma))
    x = alpha * wide + sigma * noise
    c = denoiser.preconditioning.coefficients(t)
    # float64: near t = 0 clean - c_skip x cancels to sigma^2
    target = (wide - expand(c.skip, wide) * x) / expand(c.out, wide)
    return (
        (denoiser.network_output(x.to(clean.dtype), t, condition) - target.to(clean.dtype))
        .square()
        .mean()
    )


class Objective(nn.Module):
    """A model with its loss, as one module: what replication, sharding and autocast wrap.

    Attributes:
        model: what is trained.
        alternates: whether some steps train a part of the weights only.
    """

    model: nn.Module
    alternates: bool = False

    @property
    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """The backbones: what is compiled, or recomputed to save memory."""

    def groups(self) -> Iterable[tuple[list[nn.Parameter], float]]:
        """The weights that are trained, in groups, each with a factor on the learning rate.

        The gradient of each group is clipped by itself.
        """
        return [(list(self.model.parameters()), 1.0)]

    def part_name(self, index: int) -> str:
        """Under which name a value of `forward` is logged."""
        return f"loss_at_slice/{index}"

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Mean loss over the rows of a batch, and its parts to log, if any.

        The parts are those of each output time, unless the class says otherwise.
        """


class DenoisingObjective(Objective):
    """`denoising_loss` of batches with `clean`, `noise`, `times` and perhaps `condition`."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model: Denoiser = model

    @property
    def networks(self) -> list[nn.Module]:
        """The denoiser's network."""
        return [self.model.network]

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, None]:
        """The loss, and no values to log."""
        clean, noise, t = batch["clean"], batch["noise"], batch["times"]
        return denoising_loss(self.model, clean, noise, t, batch.get("condition")), None


class TrajectoryObjective(Objective):
    """`trajectory_loss` of batches with `noise`, scaled `states` and perhaps `condition`.

    Of a batch whose states are those at t = 0 alone, (batch, 1, *shape), no other is computed, and
    the loss is the distance there.

    Args:
        model: the operator.
        scales: what the states were divided by at each time, (M,).
        weights: of the times, (M,).
        distance: see `trajectory_loss`, as the next two.
        delta: of `pseudo_huber`.
        perceptual: of `lpips_vgg`.
    """

    scales: Tensor
    weights: Tensor

    def __init__(
        self,
        model: DSNO,
        scales: Float[Tensor, " M"],
        weights: Float[Tensor, " M"],
        *,
        distance: str = "l1",
        delta: float = 0.03,
        perceptual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model: DSNO = model
        self.distance, self.delta, self.perceptual = distance, delta, perceptual
        shape = (1, -1, *[1] * len(model.sample_shape))
        self.register_buffer("scales", scales.float().reshape(shape), persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    @property
    def networks(self) -> list[nn.Module]:
        """The lifted network."""
        return [self.model.lifted.network]

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The loss, and the unweighted distance at each time if all are there."""
        last_only = batch["states"].shape[1] < self.model.slices
        predicted = self.model(batch["noise"], batch.get("condition"), last_only=last_only)
        loss, per_time = trajectory_loss(
            predicted / (self.scales[:, -1:] if last_only else self.scales),
            batch["states"],
            self.weights.new_ones(1) if last_only else self.weights,
            distance=self.distance,
            delta=self.delta,
            perceptual=self.perceptual,
        )
        return loss, None if last_only else per_time
