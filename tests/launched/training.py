"""Train a tiny lifted U-Net in every way asked for; by launched processes, or imported."""

from __future__ import annotations

import contextlib
import copy
import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dsno.backbones.unet import unet_sites
from dsno.diffusion.conditions import CLASS_LABELS, Conditions
from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.operator.scaled import ScaledDenoiser
from dsno.recipes.schema import Optimisation
from dsno.support import distributed, seeds
from dsno.support.files import write_json
from dsno.teachers.store import denoiser_of
from dsno.teachers.unet import build_unet
from dsno.training.losses import TrajectoryObjective
from dsno.training.matching import MatchingObjective, Pair, matching_batches
from dsno.training.prefetch import Batch
from dsno.training.trainer import Batches, train

SHAPE = (1, 8, 8)
PLAN = Optimisation(
    steps=4,
    learning_rate=2e-3,
    batch_size=8,
    clip_norm=0.5,
    log_every=1,
    ema_decay=0.9,
    decay="constant",
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulation": 2},
    "sharded": {"shard": True},
    "checkpointed": {"gradient_checkpointing": True},
    "sharded_accumulated_checkpointed": {
        "shard": True,
        "accumulation": 2,
        "gradient_checkpointing": True,
    },
    "bf16": {"mixed_precision": "bf16"},
    "resumed": {},
    "stopped_sharded": {"shard": True},
    "matching": {},
    "matching_sharded": {"shard": True},
}
DATA = torch.randn(20, 3, *SHAPE, generator=torch.Generator().manual_seed(0))


def teacher(channels: tuple[int, ...] = (8, 16), num_classes: int | None = None) -> Denoiser:
    attention = (False,) * (len(channels) - 1) + (True,)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build_unet(
            SHAPE,
            channels=channels,
            norm_num_groups=4,
            attention=attention,
            num_classes=num_classes,
        )
    return denoiser_of(network, Preconditioning(CosineSchedule(), "v_prediction"), SHAPE)


def objective(channels: tuple[int, ...] = (8, 16)) -> TrajectoryObjective:
    return copy.deepcopy(_objective(channels))


@functools.cache
def _objective(channels: tuple[int, ...]) -> TrajectoryObjective:
    denoiser = teacher(channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        operator = DSNO.from_teacher(denoiser, LiftConfig(unet_sites(denoiser.network), slices=2))
    # l2, as the signs of l1's errors turn with rounding
    return TrajectoryObjective(operator, torch.ones(2), torch.tensor([0.5, 1.5]), distance="l2")


class Stop(Exception):
    """Raised where a run is to be cut off."""


def batches(step: int, places: range) -> Batch:
    rows = seeds.batch_items(0, step, PLAN.batch_size, len(DATA))[places.start : places.stop]
    return {"items": rows, "noise": DATA[rows, 0], "states": DATA[rows, 1:]}


def batches_until(end: int) -> Batches:
    def cut(step: int, places: range) -> Batch:
        if step >= end:
            raise Stop
        return batches(step, places)

    return cut


def fit(
    folder: Path,
    make: Batches = batches,
    *,
    channels: tuple[int, ...] = (8, 16),
    **changes: Any,
) -> tuple[dict[str, Tensor], list]:
    plan = PLAN.model_copy(update=changes)
    average, history = train(objective(channels), make, plan, folder, seed=0, tag="t")
    return average.state_dict(), history


def labelled_teacher() -> Denoiser:
    """Of two classes; the third means none."""
    return teacher((8,), num_classes=3)


def matching() -> MatchingObjective:
    """Of a student of a range of guidance scales."""
    denoiser, row = labelled_teacher(), {CLASS_LABELS: torch.tensor([0])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = LiftConfig(unet_sites(denoiser.network), slices=2, guidance=True)
        student = DSNO.from_teacher(denoiser, config, condition=row)
        fake = ScaledDenoiser.like(denoiser, student.lifted)
    guidance = None, {CLASS_LABELS: torch.tensor(2)}
    return MatchingObjective(Pair(student, fake), denoiser, guidance=guidance, fake_rate=5.0)


def match(folder: Path, **changes: Any) -> tuple[dict[str, Tensor], list]:
    """Distribution matching; the student learns in every second step."""
    make = matching_batches(
        PLAN.batch_size,
        SHAPE,
        Conditions([0.5, 0.5], guidance=(1, 4)),
        seed=0,
        times=(0.1, 0.9),
        fake_steps=2,
    )
    plan = PLAN.model_copy(update={**changes, "learning_rate": 1e-3})
    average, history = train(matching(), make, plan, folder, seed=0, tag="t")
    return average.state_dict(), history


def stop(folder: Path, **changes: Any) -> None:
    """Leave a run that was cut off after its checkpoint of step 2."""
    with contextlib.suppress(Stop):
        fit(folder, batches_until(2), checkpoint_every=2, **changes)


def main(out: Path, names: list[str]) -> None:
    for name in names:
        folder = out / name / "checkpoints"
        if name.startswith("stopped"):
            stop(folder, **VARIANTS[name])
            continue
        if name == "resumed":
            stop(folder)
        work = match if name.startswith("matching") else fit
        weights, history = work(folder, **VARIANTS[name])
        if distributed.is_main():
            folder.parent.mkdir(parents=True, exist_ok=True)
            whole = {k: v.contiguous() for k, v in weights.items()}
            save_file(whole, out / name / "weights.safetensors")
            write_json(out / name / "history.json", {"history": history})
        distributed.wait_for_everyone()
