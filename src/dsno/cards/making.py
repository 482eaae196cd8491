"""How a model was made, line by line, from the recipe and the records of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsno.cards.markdown import plain
from dsno.data.credits import CREDITS
from dsno.evaluation.metrics import Metrics
from dsno.evaluation.samplers import SAMPLER_NAMES
from dsno.evaluation.wording import duration


def making(metrics: Metrics, *, is_finished: bool) -> list[tuple[str, str]]:
    """What the model was made from and by.

    Args:
        metrics: of its run.
        is_finished: whether it went through the recipe's finish.
    """
    recipe = metrics.recipe
    found = [("Teacher", _teacher(metrics))]
    if not _section(recipe, "teacher").get("source"):
        found.append(("Data", _data(metrics)))
    found.append(("Trajectories", _paths(metrics)))
    found.append(("Student", _training(_section(recipe, "train"))))
    if is_finished:
        found.append(("Finish", _training(_section(recipe, "finish"))))
    every = ("teacher", "collect", "train", "finish")[: None if is_finished else -1]
    stages = [name for name in every if name in metrics.durations]
    total = sum(metrics.durations[name] for name in stages)
    each = ", ".join(f"{name} {duration(metrics.durations[name])}" for name in stages)
    if stages:
        found.append(("Time to make it", f"{duration(total)} ({each})"))
    return found


def _data(metrics: Metrics) -> str:
    """The data that a teacher was trained on here; the same are what samples are compared with."""
    section, count = _section(metrics.recipe, "data"), f"{metrics.reference.count:,} items"
    source = section.get("source", "digits")
    if source in CREDITS:
        return f"{CREDITS[source]}; {count}"
    where = plain(str(section.get("path", "")))
    kind = {
        "folder": "images in",
        "huggingface": "the Hugging Face data set",
        "npz": "arrays in",
    }.get(str(source), str(source))
    return f"{kind} {where}; {count}"


def _teacher(metrics: Metrics) -> str:
    section = _section(metrics.recipe, "teacher")
    size = (
        f"{metrics.parameters['teacher']:,} parameters" if "teacher" in metrics.parameters else ""
    )
    if source := section.get("source"):
        return f"{plain(str(source))}{', ' if size else ''}{size}"
    return f"trained for this: {size}{'; ' if size else ''}{_training(section)}"


def _paths(metrics: Metrics) -> str:
    made = metrics.trajectories
    solver = SAMPLER_NAMES.get(made.solver, plain(made.solver))
    return (
        f"{made.count:,} of the teacher, by {solver} with {made.steps:,} steps "
        f"({made.nfe:,} evaluations)"
    )


def _training(section: Mapping[str, Any]) -> str:
    names = ("steps", "batch_size", "learning_rate")
    known = {name: section[name] for name in names if section.get(name) is not None}
    words = []
    if "steps" in known:
        words.append(f"{known['steps']:,} steps")
    if "batch_size" in known:
        words.append(f"batches of {known['batch_size']:,}")
    if "learning_rate" in known:
        words.append(f"learning rate {known['learning_rate']:g}")
    if "loss" in section:
        words.append(f"{plain(str(section['loss']))} loss")
    return ", ".join(words)


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, Mapping) else {}
