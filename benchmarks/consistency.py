"""A consistency-distilled student of the same backbone, to compare with: arXiv 2303.01469, alg. 2.

f(x, t) is the denoiser itself, whose boundary condition f(x, 0) = x holds. The teacher's step from
t_n to t_(n-1) is of second order: the denoised sample is averaged over both ends.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsno.data.dataset import Dataset
from dsno.diffusion.denoisers import Denoiser, expand
from dsno.support import seeds
from dsno.training.losses import Objective
from dsno.training.prefetch import Batch
from dsno.training.trainer import Batches

TARGET_DECAY = 0.95


class ConsistencyObjective(Objective):
    """Pseudo-Huber distance between f at two neighbouring times of one trajectory.

    Args:
        teacher: the denoiser distilled; a copy of it is trained.
        times: t_0 = 0 < t_1 < ... < t_N = 1.
        delta: error at which pseudo-Huber turns from square to absolute.
    """

    def __init__(self, teacher: Denoiser, times: Tensor, delta: float = 0.03) -> None:
        super().__init__()
        self.model: Denoiser = copy.deepcopy(teacher).requires_grad_(True)
        self.target: Denoiser = copy.deepcopy(teacher).requires_grad_(False)
        self.teacher: Denoiser = copy.deepcopy(teacher).requires_grad_(False)
        self.times, self.delta = times.double(), delta

    @property
    def networks(self) -> list[nn.Module]:
        """The student's network."""
        return [self.model.network]

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, None]:
        """The loss of one batch; the target follows the student."""
        clean, noise, condition = batch["clean"], batch["noise"], batch.get("condition")
        t, s = self.times[batch["index"]], self.times[batch["index"] - 1]
        with torch.no_grad():
            current = self.model.parameters()
            for kept, new in zip(self.target.parameters(), current, strict=True):
                kept.lerp_(new, 1 - TARGET_DECAY)
            schedule = self.teacher.schedule
            alpha, sigma, alpha_s, sigma_s = (
                expand(f(u).to(clean), clean)
                for u in (t, s)
                for f in (schedule.alpha, schedule.sigma)
            )
            x = alpha * clean + sigma * noise

            def step(denoised: Tensor) -> Tensor:
                return alpha_s * denoised + sigma_s * (x - alpha * denoised) / sigma

            first = self.teacher(x, t, condition)
            y = step((first + self.teacher(step(first), s, condition)) / 2)
            goal = self.target(y, s, condition)
        error = self.model(x, t, condition) - goal
        return ((error.square() + self.delta**2).sqrt() - self.delta).mean(), None


def batches(data: Dataset, seed: int, size: int, steps: int) -> Batches:
    """Real images with noise, labels and the place of their time among `steps` intervals."""

    def batch(step: int, places: range) -> Batch:
        here = slice(places.start, places.stop)
        rows = seeds.batch_items(seed, step, size, len(data))[here]
        items = range(step * size + places.start, step * size + places.stop)
        drawn = seeds.generator(seed, seeds.TEACHER_TIME, step).integers(1, steps + 1, size)
        found: dict[str, Any] = {
            "clean": data.rows(rows),
            "noise": seeds.item_noise(seed, items, data.sample_shape, stream=seeds.TEACHER_NOISE),
            "index": torch.from_numpy(drawn)[here],
        }
        if data.labels is not None:
            found["condition"] = {"class_labels": data.labels[rows]}
        return found

    return batch
