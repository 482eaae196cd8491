"""An operator captured as a graph: tensors in, samples out, for any batch size."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dsno.diffusion.conditions import CLASS_LABELS, GUIDANCE_SCALE
from dsno.operator.dsno import DSNO
from dsno.support.errors import InputError
from dsno.support.verbosity import is_verbose

NOISE, SAMPLE, STATES = "noise", "sample", "states"
"""Names of inputs and outputs; those of conditions are the operator's."""
TRACED = 2
"""Batch size of the example that is captured."""
CHECKED = (1, 3)
"""Batch sizes at which a written file is compared, besides one that the first capture excluded."""


@dataclass(frozen=True)
class Asked:
    """What the graph of an operator takes and gives.

    Attributes:
        classes: number of classes, whose labels are an input; None if it takes none.
        guidance: the scales (low, high) that are an input; None if it takes none.
        trajectory: give the states at all trained times instead of the sample.
    """

    classes: int | None = None
    guidance: tuple[float, float] | None = None
    trajectory: bool = False

    @property
    def output(self) -> str:
        """Name of what it gives."""
        return STATES if self.trajectory else SAMPLE

    def example(self, operator: DSNO, batch: int) -> dict[str, Tensor]:
        """Inputs of a batch size, the same each time."""
        random = torch.Generator().manual_seed(batch)
        found = {NOISE: torch.randn(batch, *operator.sample_shape, generator=random)}
        if self.classes is not None:
            found[CLASS_LABELS] = torch.randint(self.classes, (batch,), generator=random)
        if self.guidance is not None:
            low, high = self.guidance
            found[GUIDANCE_SCALE] = low + (high - low) * torch.rand(batch, generator=random)
        return found


class Evaluation(nn.Module):
    """One evaluation of an operator as a function of tensors alone."""

    def __init__(self, operator: DSNO, *, trajectory: bool = False) -> None:
        super().__init__()
        self.operator, self.trajectory = operator, trajectory

    def forward(
        self,
        noise: Tensor,
        class_labels: Tensor | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """The sample (batch, *shape), or the states (batch, M, *shape) at the trained times."""
        given = {CLASS_LABELS: class_labels, GUIDANCE_SCALE: guidance_scale}
        condition = {name: value for name, value in given.items() if value is not None}
        if self.trajectory:
            states: Tensor = self.operator(noise, condition)
            return states
        return self.operator.sample(noise, condition)


@dataclass(frozen=True)
class Graph:
    """What was captured.

    Attributes:
        program: for any batch size.
        inputs: its inputs' names, in order.
        output: the name of what it gives.
        checked: batch sizes at which what is made of it is to be compared with the operator.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    output: str
    checked: tuple[int, ...]


def capture(operator: DSNO, asked: Asked) -> Graph:
    """Capture one evaluation.

    Networks take other branches for large batches (diffusers copies feature maps of 64 rows or
    more), which a graph cannot have. The first capture takes the branches of a small batch, and so
    is for sizes up to a limit; the second one is of the first, which has no branches, and so is for
    all. That nothing hangs on them is to be checked beyond the limit.

    Raises:
        InputError: if it cannot be captured.
    """
    example = asked.example(operator, TRACED)
    evaluation = Evaluation(operator, trajectory=asked.trajectory).eval()
    with _named(operator):
        first = _export(evaluation, example, Dim.AUTO)
        plain = first.module(**_WITHOUT_LIMITS)
        program = _export(plain, example, Dim("batch", min=1))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, half of a small file
    limits = [int(r.upper) + 1 for r in first.range_constraints.values() if r.upper < _UNLIMITED]
    return Graph(program, tuple(example), asked.output, (*CHECKED, *limits))


_WITHOUT_LIMITS: Mapping[str, Any] = (
    {"check_guards": False}
    if "check_guards" in inspect.signature(ExportedProgram.module).parameters
    else {}
)
"""Older versions of PyTorch check no limits there."""
_UNLIMITED = 2**31
"""More than any limit on the batch size."""


def _export(module: nn.Module, example: Mapping[str, Tensor], batch: Any) -> ExportedProgram:
    shapes = {name: {0: batch} for name in example}
    with torch.no_grad(), quiet_compiler():
        return torch.export.export(module, (), dict(example), dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _named(operator: DSNO) -> Iterator[None]:
    """Say of which network it is that a capture failed; the compiler raises errors of all kinds."""
    try:
        yield
    except Exception as error:
        network = type(operator.lifted.network).__name__
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"The network ({network}) cannot be captured as a graph ({type(error).__name__}: "
            f"{reason:.200}); export it without --to, which writes a folder for this package."
        ) from error


@contextlib.contextmanager
def quiet_compiler() -> Iterator[None]:
    """Silence the advice of PyTorch's exporters; the user hears it with --verbose."""
    if is_verbose():
        yield
        return
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
