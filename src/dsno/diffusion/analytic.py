"""Teachers with closed forms: a diagonal Gaussian mixture and one Gaussian.

Their denoiser and, for one Gaussian or any 1-D mixture, the flow of their probability-flow ODE are
exact, so everything numeric is tested against them.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import expand
from dsno.diffusion.schedules import NoiseSchedule, signal_and_noise
from dsno.support.errors import InputError


class GaussianMixture:
    """The exact denoiser of data drawn from a mixture of diagonal Gaussians.

    Args:
        means: (components, *shape).
        stds: standard deviations, (components, *shape) or broadcastable to it.
        schedule: the noise schedule.
        weights: (components,), need not be normalised; equal if None.

    With `condition = {"class_labels": k}` the data are component k alone, which makes it a
    class-conditional teacher too.
    """

    sigma_data = 1.0

    def __init__(
        self, means: Tensor, stds: Tensor, schedule: NoiseSchedule, weights: Tensor | None = None
    ) -> None:
        self.means = means.double()
        self.stds = stds.double().expand_as(self.means)
        w = torch.ones(len(means)) if weights is None else weights
        if not bool((self.stds > 0).all()) or not bool((w > 0).all()) or w.shape != means.shape[:1]:
            raise InputError(
                "A Gaussian mixture needs positive standard deviations and one positive weight "
                "per component."
            )
        self.log_weights = (w.double() / w.sum()).log()
        self.schedule = schedule
        self.sample_shape = tuple(means.shape[1:])

    def __call__(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, condition: Condition | None = None, /
    ) -> Float[Tensor, "batch *shape"]:
        """Return E[x_0 | x_t = x]; computed in float64 with log-sum-exp, returned in x's dtype."""
        t = t.double()
        wide = x.double()[:, None]  # (batch, 1, *shape)
        alpha, sigma = (expand(f(t), wide) for f in (self.schedule.alpha, self.schedule.sigma))
        variance = alpha**2 * self.stds**2 + sigma**2
        residual = wide - alpha * self.means
        means = self.means + alpha * self.stds**2 / variance * residual  # posterior mean of each
        log_density = -0.5 * (residual**2 / variance + variance.log())
        logits = self.log_weights + log_density.reshape(*log_density.shape[:2], -1).sum(2)
        if condition and "class_labels" in condition:
            chosen = torch.nn.functional.one_hot(condition["class_labels"], len(self.means)).bool()
            logits = logits.masked_fill(~chosen, -math.inf)
        share = logits.softmax(1).reshape(*logits.shape, *[1] * (x.ndim - 1))
        return (share * means).sum(1).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw data: (count, *shape), float64."""
        k = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        unit = torch.randn(count, *self.sample_shape, generator=generator, dtype=torch.float64)
        return self.means[k] + self.stds[k] * unit


class Gaussian(GaussianMixture):
    """One Gaussian: besides the denoiser, the flow itself has a closed form."""

    def __init__(self, mean: Tensor, std: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__(mean[None], std[None], schedule)

    def flow(self, x: Float[Tensor, "batch *shape"], t_from: Tensor, t_to: Tensor) -> Tensor:
        """Carry x along the exact flow.

        (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant along it.

        `t_to = 0` means the clean end, alpha = 1 and sigma = 0, as in the solvers.
        """
        (mean,), (std,) = self.means, self.stds

        def moments(t: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = signal_and_noise(self.schedule, t)
            return alpha * mean, (alpha**2 * std**2 + sigma**2).sqrt()

        (m1, s1), (m2, s2) = moments(t_from), moments(t_to)
        return m2 + s2 * (x - m1) / s1


def mixture_flow_1d(
    mixture: GaussianMixture, x: Float[Tensor, " batch"], t_from: Tensor, t_to: Tensor
) -> Float[Tensor, " batch"]:
    """The exact flow of a 1-D mixture: it keeps quantiles, x_to = F_to^-1(F_from(x)).

    Solved by bisection on the log-odds of the distribution function, in float64; no ODE solver is
    involved. `mixture.sample_shape` must be () or (1,).
    """
    means, stds = mixture.means.flatten(), mixture.stds.flatten()

    def log_odds(y: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = signal_and_noise(mixture.schedule, t)
        z = (y[:, None] - alpha * means) / (alpha**2 * stds**2 + sigma**2).sqrt()
        below = torch.logsumexp(mixture.log_weights + torch.special.log_ndtr(z), 1)
        above = torch.logsumexp(mixture.log_weights + torch.special.log_ndtr(-z), 1)
        return below - above

    target = log_odds(x.double(), t_from)
    low, high = torch.full_like(target, -1e4), torch.full_like(target, 1e4)
    for _ in range(120):
        middle = (low + high) / 2
        under = log_odds(middle, t_to) < target
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2
