"""What identifies the result of a stage: a hash of all that it depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dsno.recipes.schema import Optimisation
from dsno.runs.records import Extended, StageRecord
from dsno.support.files import fingerprint
from dsno.training.learning_rate import LearningRate


def tag_of(before: str, inputs: Mapping[str, Any], extended: Sequence[Extended] = ()) -> str:
    """The fingerprint of a stage.

    Args:
        before: fingerprint of the stage before it.
        inputs: what else it depends on.
        extended: where its training was extended, as it is recorded.
    """
    history = [list(extended)] if extended else []
    return fingerprint([before, inputs, *history])


def identity(
    before: str, forms: Sequence[dict[str, Any]], record: StageRecord | None
) -> tuple[str, dict[str, Any]]:
    """Fingerprint and inputs of a stage: as recorded, if the record is of the same.

    Args:
        before: fingerprint of the stage before it.
        forms: its inputs as they are recorded now, then as earlier versions recorded the same.
        record: of the stage, if there is one.
    """
    if record is not None:
        for form in forms:
            if tag_of(before, form, record.get("extended", ())) == record["fingerprint"]:
                return record["fingerprint"], form
    return tag_of(before, forms[0]), forms[0]


def extended(record: StageRecord, options: Optimisation, point: Extended) -> list[Extended]:
    """Where a training was extended, if that made it another than one of its steps from the start.

    It did not if the steps already done had the learning rates they would have had then, as with a
    constant one.

    Args:
        record: of the training before it is extended.
        options: of the training now.
        point: where it is extended now.
    """
    earlier = list(record.get("extended", ()))
    done = range(earlier[-1]["at"] if earlier else 0, min(point["at"], point["steps"]))
    now = LearningRate.of(options)
    then = dataclasses.replace(now, steps=point["steps"])
    if all(now(step) == then(step) for step in done):
        return earlier
    return [*earlier, point]
