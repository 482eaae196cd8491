"""A trained model at work for the page: one request at a time, timed and counted."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsno.app.request import IN_TURN, Interpolation, Offer, Request
from dsno.diffusion.conditions import CLASS_LABELS, EMBEDDINGS, GUIDANCE_SCALE
from dsno.diffusion.solvers import solve
from dsno.diffusion.time_grids import grid_times
from dsno.pipeline import DSNOPipeline
from dsno.recipes.choices import Solver
from dsno.sampling.dial import check_teacher
from dsno.sampling.interpolation import spherical
from dsno.sampling.outputs import DSNOPipelineOutput
from dsno.support import seeds
from dsno.support.errors import InputError
from dsno.support.images import MODES
from dsno.support.transfers import synchronize

FINE = 16
"""Times of a trajectory between noise and sample, if the model is as good between those it was
trained at."""
_ARGUMENTS = {EMBEDDINGS: "prompt_embeds"}
"""Names of conditions that are others among the pipeline's arguments."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Drawing:
    """Samples, and what they took.

    Attributes:
        images: (batch, C, H, W), about [-1, 1], on the host.
        seconds: of the wall clock for all of them, the decoding of a latent model included.
        nfe: network evaluations of each.
    """

    images: Tensor
    seconds: float
    nfe: int


@dataclass(frozen=True)
class Film:
    """States of trajectories, from noise to samples.

    Attributes:
        times: falling from 1 to 0.
        frames: for each time, (batch, C, H, W), on the host.
        seconds, nfe: as `Drawing`; all states together.
    """

    times: list[float]
    frames: list[Tensor]
    seconds: float
    nfe: int


class ServedModel:
    """A pipeline that any thread may ask; its network runs for one of them at a time.

    Args:
        pipeline: on its device.
        name: for the page.

    Raises:
        InputError: if its samples are no images, or its teacher is not the one it was made from.
    """

    def __init__(self, pipeline: DSNOPipeline, name: str) -> None:
        self.pipeline, self.name = pipeline, name
        self.image_shape = pipeline.image_shape
        if len(self.image_shape) != 3 or self.image_shape[0] not in MODES:
            raise InputError(
                f"The page shows images, but the samples of this model have shape "
                f"{self.image_shape}; write them to an .npz file by `dsno sample`."
            )
        if pipeline.teacher is not None:
            operator = pipeline.model.operator
            check_teacher(pipeline.teacher, operator.preconditioning, operator.sample_shape)
        config = pipeline.model.config
        frequencies = config.class_frequencies
        self.offer = Offer(
            classes=None if frequencies is None else len(frequencies),
            guidance=pipeline.model.guidance_range,
            is_textual=config.is_textual,
            has_teacher=pipeline.teacher is not None,
        )
        self._busy = threading.Lock()

    @property
    def fixed_guidance(self) -> float | None:
        """The guidance scale distilled in, if it is one."""
        scale = self.pipeline.model.config.guidance_scale
        return None if scale is None or self.offer.guidance is not None else float(scale)

    def warm_up(self) -> None:
        """Make one image in each way, so that the first to be timed takes no longer than others."""
        request = Request(
            seed=0,
            count=1,
            label=next(iter(self.offer.labels), None),
            guidance=None if self.offer.guidance is None else self.offer.guidance[0],
            prompt="" if self.offer.is_textual else None,
        )
        self.draw(request)
        if self.offer.has_teacher:
            self.solve(request, "ddim", 1)

    def draw(self, request: Request) -> Drawing:
        """Samples in one evaluation: those that `dsno sample --seed` makes."""
        with self._busy:
            return self._draw(self._noise(request), self._condition(request))

    def solve(self, request: Request, solver: Solver, steps: int) -> Drawing:
        """The same noise through the teacher.

        Raises:
            InputError: if the model has none.
        """
        teacher = self.pipeline.teacher
        if teacher is None:
            raise InputError("This model was saved without its teacher.")
        with self._busy:
            noise, condition = self._noise(request), self._condition(request)

            def work() -> tuple[Tensor, int]:
                found = solve(
                    teacher, noise, method=solver, steps=steps, condition=condition or None
                )
                return self.pipeline.decode(found.states[:, -1]).cpu(), found.nfe

            (images, nfe), seconds = self._timed(work)
        return Drawing(images, seconds, nfe)

    def follow(self, request: Request) -> Film:
        """Noise, the states on the way and the samples, all from one evaluation."""
        operator = self.pipeline.model.operator
        asked = None
        if operator.lifted.config.readout and operator.slices < FINE:
            asked = grid_times(operator.spacing, FINE)
        with self._busy:
            noise, condition = self._noise(request), self._condition(request)

            def work() -> tuple[list[float], list[Tensor], int]:
                made = self._call(
                    noise, condition, output_type="latent", return_trajectory=True, times=asked
                )
                assert made.trajectory is not None
                assert made.times is not None
                start = operator.preconditioning.schedule.sigma(torch.ones(()).double())
                states = [noise * float(start), *made.trajectory.unbind(1)]
                frames = [self.pipeline.decode(state).cpu() for state in states]
                return [1.0, *made.times.tolist()], frames, made.nfe

            (times, frames, nfe), seconds = self._timed(work)
        return Film(times, frames, seconds, nfe)

    def interpolate(self, request: Request, way: Interpolation) -> Drawing:
        """Samples of noises between two seeds, row by row; a row has one class."""
        other = dataclasses.replace(request, seed=way.seed)
        with self._busy:
            noise = spherical(self._noise(request), self._noise(other), way.points)
            condition = {
                name: value.repeat_interleave(way.points, 0)
                for name, value in self._condition(request).items()
            }
            return self._draw(noise.flatten(0, 1), condition)

    def _draw(self, noise: Tensor, condition: Mapping[str, Tensor]) -> Drawing:
        def work() -> tuple[Tensor, int]:
            made = self._call(noise, condition, output_type="raw")
            assert isinstance(made.images, Tensor)
            return made.images.cpu(), made.nfe

        (images, nfe), seconds = self._timed(work)
        return Drawing(images, seconds, nfe)

    def _call(
        self, noise: Tensor, condition: Mapping[str, Tensor], **options: Any
    ) -> DSNOPipelineOutput:
        """What the pipeline gives for a condition."""
        given: dict[str, Any] = {_ARGUMENTS.get(name, name): v for name, v in condition.items()}
        made = self.pipeline(noise=noise, **given, **options)
        assert isinstance(made, DSNOPipelineOutput)
        return made

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.pipeline.model.device
        return device

    def _timed(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """What the work gives, and how long it took."""
        synchronize(self._device)
        start = time.perf_counter()
        with torch.no_grad():
            found = work()
        return found, time.perf_counter() - start

    def _noise(self, request: Request) -> Tensor:
        """Unit noise (count, *shape) of the seed; image i depends on (seed, i) alone."""
        shape = self.pipeline.model.operator.sample_shape
        noise = seeds.item_noise(request.seed, range(request.count), shape, stream=seeds.SAMPLE)
        return noise.to(self._device)

    def _condition(self, request: Request) -> dict[str, Tensor]:
        """Labels, guidance and embeddings, each with a row for every sample."""
        given: dict[str, Tensor] = {}
        count = request.count
        if request.label is not None:
            given[CLASS_LABELS] = self._labels(request)
        if request.guidance is not None:
            given[GUIDANCE_SCALE] = torch.full((count,), request.guidance)
        if request.prompt is not None:
            embeddings = self.pipeline.embed([request.prompt])
            given[EMBEDDINGS] = embeddings.expand(count, *embeddings.shape[1:])
        return {name: value.to(self._device) for name, value in given.items()}

    def _labels(self, request: Request) -> Tensor:
        """The class of each sample, (count,), int64."""
        frequencies, items = self.pipeline.model.config.class_frequencies, range(request.count)
        assert request.label is not None
        if request.label == IN_TURN:
            return torch.arange(request.count) % len(frequencies)
        if request.label.isdecimal():
            return torch.full((request.count,), int(request.label))
        return seeds.item_labels(request.seed, items, frequencies, stream=seeds.SAMPLE_LABEL)
