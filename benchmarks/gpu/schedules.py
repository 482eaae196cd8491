"""Which schedule trains faster: the same small network for as many steps on each.

    python benchmarks/gpu/schedules.py --data CIFAR --steps 800

A sounding for a CPU, on CIFAR-10 at 16x16 (`benchmarks/cifar16.yaml`). CIFAR is as for `visit.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# before this folder: `speed` is benchmarks/speed.py, `gpu.speed` the part
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from dsno.diffusion.denoisers import Denoiser
from dsno.evaluation.reference import build_reference
from dsno.evaluation.samplers import Draws, draw, teacher_sampler
from dsno.recipes import load_recipe
from dsno.runs.build import conditions_of, load_recipe_data, new_teacher
from dsno.training.batches import teacher_batches
from dsno.training.losses import DenoisingObjective
from dsno.training.trainer import train
from gpu.images import as_npz

RECIPE = str(Path(__file__).resolve().parents[1] / "cifar16.yaml")
KINDS = {
    "cosine": ("teacher.prediction_type=v_prediction", "teacher.schedule={name: cosine}"),
    "edm": (
        "teacher.prediction_type=edm",
        "teacher.schedule={name: edm}",
        "teacher.sigma_data=0.5",
    ),
}
SAMPLERS = (("dpm++2m", 16, "uniform"), ("dpm++2m", 16, "karras"), ("heun", 12, "uniform"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure; a line of JSON each sampler."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="npz file or parquet shards")
    parser.add_argument("--steps", type=int, default=800, help="of each training")
    parser.add_argument("--samples", type=int, default=2000, help="of a distance")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = as_npz(options.data, Path(folder) / "images.npz")
        base = ("data.source=npz", f"data.path={path}", f"teacher.steps={options.steps}")
        data = load_recipe_data(load_recipe(RECIPE, base))
        reference = build_reference(data, ("pixels", "classifier"), seed=0)
        for kind, changes in KINDS.items():
            recipe = load_recipe(RECIPE, [*base, *changes])
            teacher, spec = new_teacher(recipe), recipe.teacher
            batches = teacher_batches(
                data,
                spec.batch_size or 0,
                seed=recipe.seed,
                flips=False,
                conditional=spec.conditional,
                label_dropout=spec.label_dropout,
                null_class=teacher.null_class,
            )
            begun = time.process_time()
            objective = DenoisingObjective(teacher.denoiser)
            averaged, _ = train(
                objective, batches, spec, Path(folder) / kind, seed=recipe.seed, tag=kind
            )
            spent = time.process_time() - begun
            assert isinstance(averaged, Denoiser)
            conditions = conditions_of(recipe, teacher, None)
            draws = Draws(recipe.seed, averaged.sample_shape, conditions, 500)
            for method, steps, spacing in SAMPLERS:
                sampler = teacher_sampler(averaged, method, steps, spacing)
                made = draw(sampler, draws, options.samples, lambda *_, **__: None)
                found = {"schedule": kind, "steps": options.steps, "processor_seconds": spent}
                found |= {"sampler": f"{method}-{steps}, {spacing}"} | reference.distances(made)
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
