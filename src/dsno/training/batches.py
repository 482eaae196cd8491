"""What each step trains on: functions of the seed, the step and the row of the batch."""

from __future__ import annotations

from typing import Any

import torch

from dsno.data.dataset import Dataset
from dsno.diffusion.conditions import CLASS_LABELS
from dsno.support import seeds
from dsno.training.prefetch import Batch
from dsno.training.trainer import ITEMS, Batches
from dsno.trajectories.dataset import TrajectoryStore


def teacher_batches(
    data: Dataset,
    size: int,
    *,
    seed: int,
    flips: bool,
    conditional: bool,
    label_dropout: float,
    null_class: int | None,
) -> Batches:
    """Rows of the data with noise, times and labels.

    Args:
        data: what to draw from.
        size: rows a step.
        seed: of every draw.
        flips: mirror half of the images.
        conditional: give the labels, which the data must have then.
        label_dropout: share of the labels that are withheld.
        null_class: the label given instead; needed with `label_dropout`.
    """

    def batch(step: int, places: range) -> Batch:
        here = slice(places.start, places.stop)
        units = {
            stream: torch.from_numpy(seeds.generator(seed, stream, step).random(size)[here])
            for stream in (seeds.FLIP, seeds.TEACHER_TIME, seeds.LABEL_DROPOUT)
        }
        rows = seeds.batch_items(seed, step, size, len(data))[here]
        clean = data.rows(rows, units[seeds.FLIP] < 0.5 if flips else None)
        items = range(step * size + places.start, step * size + places.stop)
        noise = seeds.item_noise(seed, items, data.sample_shape, stream=seeds.TEACHER_NOISE)
        # one time in each of `size` equal strata
        t = (torch.tensor(places) + units[seeds.TEACHER_TIME]) / size
        found: dict[str, Any] = {ITEMS: rows, "clean": clean, "noise": noise, "times": t}
        if conditional:
            assert data.labels is not None
            labels = data.labels[rows]
            if label_dropout:
                assert null_class is not None
                withheld = units[seeds.LABEL_DROPOUT] < label_dropout
                labels = torch.where(withheld, null_class, labels)
            found["condition"] = {CLASS_LABELS: labels}
        return found

    return batch


def student_batches(
    store: TrajectoryStore,
    size: int,
    *,
    seed: int,
    window: int | None,
    trajectory_every: int,
) -> Batches:
    """Rows of the trajectories.

    Args:
        store: what to draw from.
        size: rows a step.
        seed: of every draw.
        window: shards that are shuffled together; all if None.
        trajectory_every: steps of which one has whole trajectories, the others final states only.
    """
    shard = store.manifest.shard_size

    def batch(step: int, places: range) -> Batch:
        whole = seeds.batch_items(seed, step, size, len(store), shard=shard, window=window)
        rows = whole[places.start : places.stop]
        noise, states, condition = store.rows(rows)
        if step % trajectory_every:
            states = states[:, -1:]
        found: dict[str, Any] = {ITEMS: rows, "noise": noise, "states": states}
        return found if condition is None else {**found, "condition": condition}

    return batch
