"""What each key does to a result, and that every list of choices is the one of its table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, get_args

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import PrecisionType

from dsno.data.load import OPTIONS
from dsno.diffusion.denoisers import PREDICTION_TYPES
from dsno.diffusion.solvers import METHODS
from dsno.diffusion.time_grids import SPACINGS
from dsno.operator.dsno import OUTPUTS
from dsno.recipes import choices, load_recipe
from dsno.recipes.effects import (
    Effect,
    LaterResult,
    Result,
    ResultOfFile,
    Rounding,
    effect,
    map_files,
    result_values,
    section_of,
    with_later,
)
from dsno.recipes.schema import Recipe, Section
from dsno.training.losses import DISTANCES, LPIPS_VGG
from dsno.trajectories.shards import DTYPES

LOGS = {"checkpoint_every", "keep", "log_every", "log_images_every", "log_with"}
LATER = {
    "collect.precision": "exact",
    "evaluate.precision": "exact",
    "finish.watch_features": None,
    "finish.watch_torchscript": "",
}
"""Keys that recipes of recorded results may lack, and what those results were made with."""
MEMORY = {
    *("accumulation", "channels_last", "compile", "cpu_replicas"),
    *("gradient_checkpointing", "shard"),
}
TRAININGS = ("teacher", "train", "finish")
NOTHING = {f"{s}.{key}" for s in TRAININGS for key in LOGS} - {"finish.checkpoint_every"} | {
    "name",
    "collect.cache_gb",
    "collect.destination",
    "evaluate.inception",  # one known file
    "evaluate.more_curves",  # what is measured besides
}
ROUNDING = {f"{s}.{key}" for s in TRAININGS for key in MEMORY} | {
    "collect.batch_size",
    "collect.compile",
    "evaluate.batch_size",
    "evaluate.compile",
}


def keys(section: Any, prefix: str = "") -> dict[str, Effect | None]:
    found = {}
    for name, field in section.model_fields.items():
        inner = section_of(field)
        if inner is None:
            found[prefix + name] = effect(section, name)
        else:
            found |= keys(inner, f"{prefix}{name}.")
    return found


def test_every_key_changes_the_result_but_those_that_are_known_not_to() -> None:
    found = keys(Recipe)
    assert {key for key, said in found.items() if said is Effect.NOTHING} == NOTHING
    assert {key for key, said in found.items() if said is Effect.ROUNDING} == ROUNDING
    rest = found.keys() - NOTHING - ROUNDING
    assert {found[key] for key in rest} == {Effect.RESULT}
    assert {"seed", "data.path", "teacher.network.channels", "train.steps"} <= rest


def test_a_later_key_at_its_default_leaves_older_records_valid() -> None:
    digits = load_recipe("digits", ["evaluate.dial=null"]).model_dump(mode="json")
    before = {
        *("samples", "features", "classifier_seed", "curves"),
        *("baseline_steps", "reference_steps", "pictures", "timing_rounds"),
    }
    assert result_values(Recipe, digits)["evaluate"].keys() == before
    digits["evaluate"]["torchscript"] = "x.pt"
    assert result_values(Recipe, digits)["evaluate"].keys() == {*before, "torchscript"}


def test_a_key_that_says_nothing_of_its_effect_is_an_error_of_the_schema() -> None:
    with pytest.raises(TypeError, match=r"Half\.colour does not say what it does to a result"):

        class Half(Section):
            steps: Result[int] = 1
            colour: str = ""


def test_a_section_speaks_for_its_keys_and_a_key_for_itself() -> None:
    class Both(Section):
        EFFECT: ClassVar[Effect | None] = Effect.NOTHING
        colour: str = ""
        size: Rounding[int] = 1

    assert effect(Both, "colour") is Effect.NOTHING
    assert effect(Both, "size") is Effect.ROUNDING


class Inner(Section):
    path: ResultOfFile[str | tuple[str, ...]] = ""
    batch: Rounding[int] = 1


class Outer(Section):
    inner: Inner | None = None
    file: ResultOfFile[str] = ""
    plain: Result[str] = ""


def test_values_are_reduced_to_what_a_result_depends_on() -> None:
    values = {"inner": {"path": "a", "batch": 3, "of_old": 1}, "plain": "b", "gone": 2}
    expected = {"inner": {"path": "a", "of_old": 1}, "plain": "b", "gone": 2}
    assert result_values(Outer, values) == expected
    assert result_values(Outer, {"inner": None}) == {"inner": None}


class Grown(Section):
    """A section with a key that it did not have before."""

    outer: Outer | None = None
    steps: Result[int] = 1
    mode: LaterResult[str] = "as before"


def test_a_later_key_counts_once_it_is_not_at_its_default() -> None:
    before, changed = {"steps": 3}, {"steps": 3, "mode": "fast"}
    assert result_values(Grown, {"steps": 3, "mode": "as before"}) == before
    assert result_values(Grown, changed) == changed
    assert with_later(Grown, before) == {"steps": 3, "mode": "as before"}
    assert with_later(Grown, changed) == changed


def test_results_recorded_without_a_later_key_stay_valid() -> None:
    recipe = load_recipe("digits")
    values = recipe.model_dump(mode="json")
    found = result_values(Recipe, values)
    for key, default in LATER.items():
        section, _, name = key.partition(".")
        assert values[section][name] == default
        assert name not in found[section]


def test_names_of_files_are_found_and_nothing_else() -> None:
    values = {"inner": {"path": "a", "batch": 3}, "file": "b", "plain": "c"}
    found = map_files(Outer, values, lambda key, path: f"{key}={path}!")
    expected = {"inner": {"path": "inner.path=a!", "batch": 3}, "file": "file=b!", "plain": "c"}
    assert found == expected
    assert map_files(Inner, {"path": ["one", "two"]}, lambda *_: "no") == {"path": ["one", "two"]}


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (choices.DataSource, OPTIONS),
        (choices.Loss, {*DISTANCES, LPIPS_VGG}),
        (choices.OperatorOutput, OUTPUTS),
        (choices.Precision, set(PrecisionType.list()) - {"fp8"}),
        (choices.PredictionType, PREDICTION_TYPES),
        (choices.Solver, METHODS),
        (choices.SpacingName, SPACINGS),
        (choices.StorageType, DTYPES),
        (choices.Tracker, LOGGER_TYPE_TO_CLASS),
    ],
)
def test_the_choices_are_those_of_the_table_that_does_them(
    names: Any, table: Collection[str]
) -> None:
    assert set(get_args(names)) == set(table)
