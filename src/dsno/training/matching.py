"""Distribution matching: train a one-step student until its samples are distributed as the data.

A regression on trajectories can at best reproduce the teacher's own samples, solver's error and
blur included. Distribution matching (DMD: Yin et al., arXiv 2311.18828) compares distributions: a
second network, the *fake* one, starts as the teacher and learns what the teacher knows of the data,
but of the student's samples. Put noise on a sample of the student: where the teacher's estimate of
the clean image differs from the fake network's, samples are too many or too few, and the sample is
moved along the difference. No real image is needed. The two networks learn in the same steps, as
in DMD2 (Yin et al., arXiv 2405.14867, section 4.2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsno.diffusion.conditions import Condition, Conditions
from dsno.diffusion.denoisers import Denoiser, DenoiserProtocol, expand
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.operator.dsno import DSNO
from dsno.support import seeds
from dsno.training.losses import Objective, denoising_loss
from dsno.training.prefetch import Batch
from dsno.training.trainer import ITEMS, Batches
from dsno.trajectories.dataset import TrajectoryStore


class Pair(nn.Module):
    """The student and the network that learns what its samples look like.

    Args:
        student: the operator.
        teacher: what the fake network is a copy of at first; a `ScaledDenoiser` for a student of a
            range of guidance scales.
    """

    def __init__(self, student: DSNO, teacher: Denoiser) -> None:
        super().__init__()
        self.student: DSNO = student.requires_grad_(True)
        self.fake: Denoiser = copy.deepcopy(teacher).requires_grad_(True)  # a loaded one is frozen

    def forward(self, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Samples of the student, (batch, *shape)."""
        return self.student.sample(noise, condition)


def matching_direction(
    clean: Float[Tensor, "batch *shape"],
    real: Float[Tensor, "batch *shape"],
    fake: Float[Tensor, "batch *shape"],
) -> Float[Tensor, "batch *shape"]:
    """The gradient of the distribution matching loss with respect to each sample.

    That is (fake - real) divided, for each sample, by the mean of |clean - real|, so that all noise
    levels count alike (arXiv 2311.18828, eq. 7 and 8).

    Args:
        clean: samples of the student.
        real: the teacher's estimate of the clean image, from a noisy version of each sample.
        fake: the fake network's estimate from the same.
    """
    gap = (clean - real).abs().flatten(1).mean(1).clamp(min=torch.finfo(clean.dtype).tiny)
    return (fake - real) / expand(gap, clean)


class MatchingObjective(Objective):
    """Distribution matching of batches of `matching_batches`.

    Everything runs as it does when sampling, without dropout: it is those samples that are matched.

    Args:
        model: student and fake network; both are trained.
        teacher: what knows the data; its weights do not change.
        guidance: scale and null condition of the teacher's guidance, whose scale is None where
            conditions have one; None for none. The fake network is not guided.
        anchor: weight of the mean absolute error to the stored samples, where batches have them.
        fake_rate: learning rate of the fake network, in the student's.
    """

    alternates = True

    def __init__(
        self,
        model: Pair,
        teacher: Denoiser,
        *,
        guidance: tuple[float | None, Condition] | None = None,
        anchor: float = 0.0,
        fake_rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.model: Pair = model
        self.teacher = teacher.requires_grad_(False)
        self.anchor, self.fake_rate = anchor, fake_rate
        self.is_guided = guidance is not None
        self.scale, null = (None, {}) if guidance is None else guidance
        self._null = sorted(null)
        for name in self._null:
            self.register_buffer(f"null_{name}", null[name], persistent=False)
        self.train()

    @property
    def networks(self) -> list[nn.Module]:
        """The backbones: the student's, the fake one and the teacher's."""
        return [self.model.student.lifted.network, self.model.fake.network, self.teacher.network]

    def groups(self) -> Iterator[tuple[list[nn.Parameter], float]]:
        """The student's weights and the fake network's, each with its factor on the rate."""
        yield list(self.model.student.parameters()), 1.0
        yield list(self.model.fake.parameters()), self.fake_rate

    def part_name(self, index: int) -> str:
        """Denoising, matching, anchor."""
        return f"loss/{('denoising', 'matching', 'anchor')[index]}"

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module, but never that of the networks in it."""
        super().train(mode)
        for module in self.children():
            module.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The sum of all losses; and one by one: denoising, matching, anchor (if there is one).

        Steps of the fake network alone have batches without `times`.
        """
        noise, condition = batch["noise"], batch.get("condition")
        learns = "times" in batch
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            clean = self.model.student.sample(noise, condition)
        samples = clean.detach()
        denoising = denoising_loss(
            self.model.fake, samples, batch["fake_noise"], batch["fake_times"], condition
        )
        if not learns:
            return denoising, None
        direction = self._direction(samples, batch["renoise"], batch["times"], condition)
        # its gradient with respect to `clean` is the direction
        matching = 0.5 * (clean - (samples - direction)).square().mean()
        losses = [denoising, matching]
        if "states" in batch:
            losses.append(self.anchor * (clean - batch["states"]).abs().mean())
        return torch.stack(losses).sum(), torch.stack(losses).detach()

    @torch.no_grad()
    def _direction(
        self, clean: Tensor, noise: Tensor, t: Tensor, condition: Condition | None
    ) -> Tensor:
        schedule = self.teacher.schedule
        alpha, sigma = (expand(f(t.double()), clean) for f in (schedule.alpha, schedule.sigma))
        x = alpha * clean + sigma * noise
        return matching_direction(
            clean, self._guided()(x, t, condition), self.model.fake(x, t, condition)
        )

    def _guided(self) -> DenoiserProtocol:
        if not self.is_guided:
            return self.teacher
        null = {name: self.get_buffer(f"null_{name}") for name in self._null}
        return GuidedDenoiser(self.teacher, self.scale, null)


def matching_batches(
    size: int,
    shape: tuple[int, ...],
    conditions: Conditions,
    *,
    seed: int,
    times: tuple[float, float],
    fake_steps: int = 1,
    fake_first: int = 0,
    store: TrajectoryStore | None = None,
) -> Batches:
    """What a step of distribution matching needs, all of it drawn: noises, times and conditions.

    Args:
        size: rows a step.
        shape: of one sample.
        conditions: how they are drawn.
        seed: of every draw.
        times: the range of the times at which the student's samples are judged.
        fake_steps: steps of the fake network for one of the student.
        fake_first: steps of the fake network before the student's first.
        store: trajectories whose noises and last states are used; new noises if None.
    """
    low, high = times

    def batch(step: int, places: range) -> Batch:
        learns = step >= fake_first and (step + 1) % fake_steps == 0
        here = slice(places.start, places.stop)
        items = range(step * size + places.start, step * size + places.stop)
        found: dict[str, Any] = {}
        if store is None:
            found["noise"] = seeds.item_noise(seed, items, shape, stream=seeds.MATCHING_NOISE)
            condition = conditions.expand(conditions.draw(seed, items))
        else:
            shard = store.manifest.shard_size
            rows = seeds.batch_items(seed, step, size, len(store), shard=shard)[here]
            found[ITEMS] = rows
            found["noise"], states, condition = store.rows(rows)
            if learns:
                found["states"] = states[:, -1] * store.manifest.scales[-1]
        if condition is not None:
            found["condition"] = condition

        def drawn(noises: int, units: int) -> tuple[Tensor, Tensor]:
            noise = seeds.item_noise(seed, items, shape, stream=noises)
            unit = torch.from_numpy(seeds.generator(seed, units, step).random(size)[here])
            # one time in each of `size` equal strata, in an order of their own
            order = seeds.generator(seed, units, 2**32 + step).permutation(size)[here]
            return noise, (torch.from_numpy(order) + unit) / size

        found["fake_noise"], found["fake_times"] = drawn(seeds.FAKE_NOISE, seeds.FAKE_TIME)
        if learns:
            found["renoise"], unit = drawn(seeds.RENOISE, seeds.MATCHING_TIME)
            found["times"] = low + (high - low) * unit
        return found

    return batch
