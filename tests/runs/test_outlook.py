"""What a stage says it will take."""

from __future__ import annotations

import pytest

from dsno.recipes import load_recipe
from dsno.runs.outlook import outlook

SMALL = ["teacher.steps=1200", "teacher.batch_size=128", "finish.steps=300", "finish.batch_size=64"]


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        ("teacher", [], "1,200 steps of 128 images"),
        ("teacher", ["teacher.source=somewhere"], None),
        (
            "collect",
            ["collect.count=1000", "collect.solver=dpm++2m", "collect.steps=12"],
            "1,000 trajectories by dpm++2m with 12 steps, 12,000 network evaluations",
        ),
        ("collect", ["collect.count=1000", "collect.source=somewhere"], None),
        (  # two evaluations a step, for Heun and for guidance, but one in Heun's last
            "collect",
            [
                "collect.count=10",
                "collect.solver=heun",
                "collect.steps=4",
                "collect.guidance_scale=2",
                "teacher.label_dropout=0.1",
            ],
            "10 trajectories by heun with 4 steps, 140 network evaluations",
        ),
        ("train", ["train.steps=5", "train.batch_size=7"], "5 steps of 7 trajectories"),
        ("finish", [], "300 steps of 64 samples"),
        (
            "evaluate",
            [
                "evaluate.samples=2000",
                "evaluate.curves=[{solver: ddim, steps: [1, 16]}, {solver: dpm++2m, steps: [32]}]",
                "evaluate.baseline_steps=16",  # which is one of the curve's
                "evaluate.dial=[1, 2]",
                "evaluate.reference_steps=64",
            ],
            # three of the teacher, the student in one step, in two, and before its finish
            "2,000 samples of each of 6 samplers, of up to 32 evaluations, and of the teacher's "
            "solution in 64 steps",
        ),
        (
            "evaluate",
            [
                "finish=null",
                "evaluate.samples=2000",
                "evaluate.curves=[{solver: ddim, steps: [1, 16]}, {solver: dpm++2m, steps: [32]}]",
                "evaluate.baseline_steps=16",
                "evaluate.dial=null",
                "evaluate.reference_steps=32",  # which is not measured twice
            ],
            "2,000 samples of each of 3 samplers, of up to 16 evaluations, and of the teacher's "
            "solution in 32 steps",
        ),
        ("report", [], None),
    ],
)
def test_a_stage_says_how_much_it_will_do(stage: str, changes: list[str], says: str | None) -> None:
    assert outlook(stage, load_recipe("digits", [*SMALL, *changes])) == says


def test_a_job_that_makes_some_shards_counts_those() -> None:
    recipe = load_recipe("digits", ["collect.count=100", "collect.shard_size=30"])
    said = outlook("collect", recipe, shards=range(2, 4))  # shard 3 is the last, of 10
    assert said is not None
    assert said.startswith("40 trajectories ")
