"""The teacher and the students of a visit: built, started from kept weights, stored again."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import Denoiser
from dsno.recipes import Recipe
from dsno.runs.build import new_teacher
from dsno.support.errors import InputError
from dsno.teachers.store import Teacher
from gpu import weights
from gpu.work import Work

TEACHER, STUDENT = "teacher", "student"


def put(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights.

    Raises:
        InputError: if they are of another network.
    """
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise InputError(
            f"The weights of the {what} are of another network than the recipe's ({line}); "
            "remove them or name another folder with --from."
        ) from None


def fresh_or_kept_teacher(work: Work, recipe: Recipe) -> tuple[Teacher, dict[str, Any]]:
    """The recipe's teacher with the weights there are, and what is said of them."""
    teacher = new_teacher(recipe)
    found = weights.load((work.out, *work.weights), TEACHER)
    if found is None:
        return teacher, {}
    put(teacher.denoiser.network, found[0], TEACHER)
    return teacher, found[1]


def trained_teacher(work: Work, recipe: Recipe) -> Teacher:
    """The teacher that this visit or an earlier one trained, on the CPU, where students are built.

    Raises:
        InputError: if none did.
    """
    teacher, about = fresh_or_kept_teacher(work, recipe)
    if not about:
        raise InputError(
            "There are no teacher's weights; run the part teacher first, or give their folder "
            "to --from."
        )
    return dataclasses.replace(teacher, denoiser=teacher.denoiser.eval())


def placed(work: Work, teacher: Teacher) -> Denoiser:
    """A copy of the teacher's denoiser on the device."""
    return copy.deepcopy(teacher.denoiser).to(work.device)


def digest(module: nn.Module) -> str:
    """Short checksum of a module's weights in half precision."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        kept = tensor.detach().cpu().contiguous()
        kept = kept.half() if kept.is_floating_point() else kept
        found.update(name.encode() + kept.numpy().tobytes())
    return found.hexdigest()[:16]


class Half:
    """A denoiser whose network computes in bfloat16."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.schedule, self.sample_shape = inner.schedule, inner.sample_shape
        self.sigma_data = inner.sigma_data

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None = None, /) -> Tensor:
        """D(x, t)."""
        with torch.autocast(x.device.type, torch.bfloat16):
            denoised: Tensor = self.inner(x, t, condition)
        return denoised


PRECISIONS = ("float32", "tf32", "bf16")
"""Full float32; float32 whose products keep 10 bits, as tensor cores offer it; autocast."""


@contextlib.contextmanager
def arithmetic(name: str, device: torch.device) -> Iterator[None]:
    """Compute in one of `PRECISIONS`, with the fastest kernels for each shape."""
    before, exact = torch.get_float32_matmul_precision(), name == "float32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=not exact)
    half = torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")
    try:
        with flags, half:
            yield
    finally:
        torch.set_float32_matmul_precision(before)
