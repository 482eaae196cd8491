"""The questions that `ablations.py` asks, and what each variant changes in a recipe.

The recipe is one whose student has the readout lift with four slices, as `digits` has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Changes = tuple[str, ...]

FRESH = "fresh"
"""In a variant's changes: weights drawn anew instead of the teacher's."""
NOT_MIXED = ("student.lift=null", "student.sites=[]")
SAMPLES_ALONE = ("student.slices=1",)
"""Plain knowledge distillation: the readout with one head."""
PAPER = ("student.lift=all",)
FINER = ("collect.slices=16", "collect.steps=24")


@dataclass(frozen=True)
class Experiment:
    """A question, and the variants that answer it: their names and what they change."""

    question: str
    variants: Mapping[str, Changes]


def _caps(name: str, changes: Changes) -> dict[str, Changes]:
    every = {"1": 1, "10": 10, "100": 100, "10,000": 10_000}
    return {f"{name}, cap {text}": (*changes, f"train.weight_max={n}") for text, n in every.items()}


EXPERIMENTS: dict[str, Experiment] = {
    "lift": Experiment(
        "How much of the network must see every slice?",
        {
            "readout": (),
            "middle": ("student.lift=middle",),
            "core": ("student.lift=core",),
            "all (the paper's)": PAPER,
            "none: knowledge distillation, M = 1": SAMPLES_ALONE,
            "the same, the network told t = 0": (*NOT_MIXED, *SAMPLES_ALONE),
        },
    ),
    "trajectory": Experiment(
        "Does learning the trajectory along help the sample?",
        {"readout": (), "knowledge distillation, M = 1": SAMPLES_ALONE},
    ),
    "temporal": Experiment(
        "Does mixing time help? Does the weights' cap decide?",
        {
            **_caps("mixed, M = 4", PAPER),
            **_caps("not mixed, M = 4", (*NOT_MIXED, "student.slices=4")),
        },
    ),
    "slices": Experiment(
        "How many slices?",
        {
            "readout, M = 2": ("student.slices=2",),
            "readout, M = 4": (),
            "readout, M = 8": ("student.slices=8", "collect.slices=8"),
            "readout, M = 4, trajectories of M = 8": ("collect.slices=8",),
            "knowledge distillation, trajectories of M = 8": (*SAMPLES_ALONE, "collect.slices=8"),
            "readout, M = 16, 24 solver steps": ("student.slices=16", *FINER),
            "knowledge distillation, trajectories of M = 16": (*SAMPLES_ALONE, *FINER),
            "all, M = 2": (*PAPER, "student.slices=2"),
            "all, M = 4": PAPER,
        },
    ),
    "modes": Experiment(
        "How many Fourier modes?",
        {
            "all, 1 mode": (*PAPER, "student.modes=1"),
            "all, 2 modes": PAPER,
            "all, 3 modes": (*PAPER, "student.modes=3"),
        },
    ),
    "weights": Experiment(
        "How should the times weigh?",
        {
            "square root of SNR, cap 10": ("train.weight_max=10",),
            "cap 100": (),
            "cap 10,000 (the paper's)": ("train.weight_max=10000",),
            "all alike": ("train.weight=flat",),
        },
    ),
    "loss": Experiment(
        "Which distance?",
        {"L1": (), "L2": ("train.loss=l2",), "pseudo-Huber": ("train.loss=pseudo_huber",)},
    ),
    "output": Experiment(
        "What does the network predict?",
        {"the clean image": (), "the state (the paper's)": ("student.output=state",)},
    ),
    "grid": Experiment("Which times?", {"quadratic": (), "uniform": ("collect.grid=uniform",)}),
    "trajectories": Experiment(
        "How many trajectories?",
        {
            **{f"{n:,}": (f"collect.count={n}",) for n in (1024, 4096, 16384)},
            "the recipe's": (),
        },
    ),
    "solver": Experiment(
        "How well must they be solved?",
        {
            "DDIM, 12 steps": ("collect.solver=ddim",),
            "DPM-Solver++(2M), 6 steps": ("collect.steps=6",),
            "DPM-Solver++(2M), 12 steps": (),
            "DPM-Solver++(2M), 24 steps": ("collect.steps=24",),
        },
    ),
    "start": Experiment(
        "Does it matter that the student starts from the teacher?",
        {"teacher's weights": (), "weights drawn anew": (FRESH,)},
    ),
}
