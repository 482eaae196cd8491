"""Looks at a model that is being trained, by its samples: which one to keep, and when to stop.

Distribution matching has no loss that says how good the samples are, and can lose variety or
diverge, so samples are measured on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import nn
from typing_extensions import TypedDict

PATIENCE = 6
"""Looks in a row that must be bad before training is stopped. On CIFAR-10 samples got several times
worse at first, and after three looks were better than ever."""
LOST = 2.0
"""How many times the first distance is bad. Distances well above the first are usual while the
learning rate is high, and fall with it."""


class Look(TypedDict):
    """What was found after a step.

    Attributes:
        step: how many steps were done.
        distance: to real data, in the space of the verdict; None if there are none, as the distance
            to a teacher's samples grows also where samples get better.
        recall: share of the reference that lies among the samples.
    """

    step: Annotated[int, Field(ge=0)]
    distance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    recall: Annotated[float, Field(ge=0, le=1)]


Measure = Callable[[nn.Module], tuple[float | None, float]]
"""Distance and recall of a model's samples, see `Look`; every process calls it alike.

It must call the model itself: the weights of a sharded one are there in its forward pass only."""


@dataclass
class Guard:
    """What looks at the averaged model, at every checkpoint and before the first step.

    Attributes:
        measure: distance and recall.
        recall_drop: how far recall may fall below the first.
        looks: all there were; filled by the training.
    """

    measure: Measure
    recall_drop: float
    looks: list[Look] = field(default_factory=list)

    def look(self, model: nn.Module, step: int) -> Look:
        """Measure the model after a step."""
        distance, recall = self.measure(model)
        return {"step": step, "distance": distance, "recall": recall}

    def best(self, looks: Sequence[Look]) -> Look:
        """The look whose model is kept: of those with enough recall, the nearest to the data.

        Without data it is the last of them.
        """
        good = [look for look in looks if self._keeps_recall(look, looks[0])]
        known = [(d, look) for look in good if (d := look["distance"]) is not None]
        if not known:
            return good[-1]
        return min(known, key=lambda found: (found[0], found[1]["step"]))[1]

    def why_stop(self, looks: Sequence[Look]) -> str | None:
        """Why training should not go on after these looks; None if it should."""
        first, last = looks[0], looks[-PATIENCE:]
        if len(looks) <= PATIENCE or not all(self._is_bad(look, first) for look in last):
            return None
        found = f"recall {last[-1]['recall']:.3f} after {first['recall']:.3f}"
        if first["distance"] is not None and last[-1]["distance"] is not None:
            found += f", distance {last[-1]['distance']:.4g} after {first['distance']:.4g}"
        return f"samples were lost in {PATIENCE} looks in a row ({found})"

    def _is_bad(self, look: Look, first: Look) -> bool:
        before, now = first["distance"], look["distance"]
        is_far = before is not None and now is not None and now > LOST * before
        return is_far or not self._keeps_recall(look, first)

    def _keeps_recall(self, look: Look, first: Look) -> bool:
        return look["recall"] >= first["recall"] - self.recall_drop
