"""Which rows of the batch each part of a lifted network works on, and the hooks that see to it.

A batch has a row for every slice of every sample. Not every part of a network needs all of them:

* `constant` parts, which nothing about time reaches, see each sample once; the numbers stay the
  same but for rounding;
* `shared` parts see each sample once, at the time of its first slice;
* `lifted` parts see every slice;
* `final` parts see the last slice alone when nothing but t = 0 is wanted. They run after time is
  mixed for the last time, so the last slice's rows are all that its output depends on.

Tensors that cross from one part to another are brought to the rows of the part they enter: a hook
in front of it repeats or picks rows in every argument. The network's own code may combine tensors
of two kinds of part between its submodules (EDM's networks concatenate skips there); it then
`restores` all rows behind every part that reduced them, which costs copies, but no arithmetic.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dsno.operator.guidance_embedding import SiteShifts
from dsno.operator.temporal import SliceLayout, TemporalLayer
from dsno.support.errors import InputError


@dataclass(frozen=True)
class BatchPlan:
    """The submodules of a network whose rows are not just as they come; by default there are none.

    Attributes:
        constant: names of those that see each sample once, with all rows restored behind them.
        shared: names of those that see each sample once.
        lifted: names of those that see every slice, where they might be given shared tensors.
        final: names of those that may see the last slice alone.
        last_site: where time is mixed for the last time; empty if it is not mixed, or if its last
            time cannot be told.
        fixed: tensors given to or by a part that have no row per sample, whatever their length (a
            table of positions): `name < i` is the i-th of a part's arguments, `name > i` of what it
            returns, both flattened.
        restores: whether all rows are restored behind shared and final parts.
    """

    constant: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    lifted: tuple[str, ...] = ()
    final: tuple[str, ...] = ()
    last_site: str = ""
    fixed: tuple[str, ...] = ()
    restores: bool = False

    def to_config(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> BatchPlan:
        """From `to_config`'s values; None for none.

        Raises:
            InputError: for other values.
        """
        if config is None:
            return cls()
        kinds = {field.name: type(field.default) for field in fields(cls)}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(config).items()}
        for name, value in values.items():
            wanted = kinds.get(name)
            names = value if isinstance(value, tuple) else ()
            right = wanted is type(value) and all(isinstance(n, str) for n in names)
            if name == "fixed":
                right = right and all(re.fullmatch(r"\S+ [<>] [0-9]{1,4}", n) for n in names)
            if not right:
                raise InputError(
                    f"The model's configuration has a wrong entry parts.{name}; it must hold "
                    f"{', '.join(kinds)}."
                )
        return cls(**cast(Any, values))


class Rows(Enum):
    """What part of a batch's rows."""

    SHARED = "the first of each sample"
    ALL = "all"
    LAST = "the last carrier's"


class BatchState:
    """What the hooks of one lifted network share: the batch in flight and the guidance input.

    Attributes:
        layout: how its rows are laid out in time.
        batch: samples in the batch.
        last_only: whether the state at t = 0 is all that is wanted.
        shifts: turns the guidance's embedding into a bias per site; None without that input.
        embedding: of the guidance scale, a row per row of the batch; None without that input.
    """

    def __init__(self, layout: SliceLayout, shifts: SiteShifts | None) -> None:
        self.layout = layout
        self.batch = 1
        self.last_only = False
        self.shifts = shifts
        self.embedding: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchState:
        """Copy what does not belong to a forward pass of the original."""
        return BatchState(copy.deepcopy(self.layout, memo), copy.deepcopy(self.shifts, memo))

    def set(
        self, layout: SliceLayout, batch: int, *, last_only: bool = False, embedding: Tensor | None
    ) -> None:
        """Prepare for a batch. It must stay so until backward has run, for checkpointing."""
        self.layout, self.batch = layout, batch
        self.last_only, self.embedding = last_only, embedding

    def select_rows(self, value: Any, rows: Rows, fixed: Collection[int] = ()) -> Any:
        """Give every tensor in nested tuples, lists and dictionaries the rows asked for.

        Those at the places `fixed` of the flattened value are left alone.
        """
        leaves, structure = tree_flatten(value)
        made = [
            self._select(x, rows) if isinstance(x, Tensor) and i not in fixed else x
            for i, x in enumerate(leaves)
        ]
        return tree_unflatten(made, structure)

    def _select(self, x: Tensor, rows: Rows) -> Tensor:
        """One tensor; those without a row per sample or slice are left alone."""
        count = self.layout.count
        if count == 1 or x.ndim == 0:
            return x
        if rows is Rows.ALL:
            if x.shape[0] != self.batch:
                return x
            # a copy also of a single sample: its rows must not share memory
            return x[:, None].expand(-1, count, *x.shape[1:]).flatten(0, 1).contiguous()
        if x.shape[0] != self.batch * count:
            return x
        return x[(0 if rows is Rows.SHARED else self.layout.carriers - 1) :: count]


class PartHooks:
    """In front of a part: bring its arguments to its rows. Behind it: restore all, if need be."""

    def __init__(
        self, rows: Rows, state: BatchState, plan: BatchPlan, name: str, *, restores: bool
    ) -> None:
        self.rows, self.state, self.restores = rows, state, restores
        # whether arguments may have fewer rows than all
        self.may_lack = bool(plan.shared) and not plan.restores
        self.fixed_in, self.fixed_out = (
            {
                int(position)
                for part, sign, position in map(str.split, plan.fixed)
                if (part, sign) == (name, side)
            }
            for side in "<>"
        )

    def attach(self, module: nn.Module) -> None:
        """Register the hooks."""
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        if self.restores and self.rows is not Rows.ALL:
            module.register_forward_hook(self.behind)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A forward pre-hook."""
        rows = self.rows
        if rows is Rows.LAST and not self.state.last_only:
            rows = Rows.ALL
        if rows is Rows.ALL and not self.may_lack:
            return None
        return self.state.select_rows((args, kwargs), rows, self.fixed_in)

    def behind(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook."""
        return self.state.select_rows(output, Rows.ALL, self.fixed_out)


class TemporalHook:
    """A forward hook that owns its layer, so that `deepcopy` (EMA) copies both together."""

    def __init__(
        self, index: int, layer: TemporalLayer, state: BatchState, *, last: bool, restores: bool
    ) -> None:
        self.index, self.layer, self.state = index, layer, state
        self.last, self.restores = last, restores

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook."""
        if isinstance(output, tuple):
            return (self._mix(output[0]), *output[1:])
        return self._mix(output)

    def _mix(self, u: Tensor) -> Tensor:
        state = self.state
        u = state.select_rows(u, Rows.ALL)  # a site may end with a shared part
        last_only = self.last and state.last_only
        mixed: Tensor = self.layer(u, state.layout, last_only=last_only)
        if state.shifts is not None and state.embedding is not None:
            told = state.select_rows(state.embedding, Rows.LAST) if last_only else state.embedding
            dim = self.layer.conv.channel_dim
            mixed = mixed + state.shifts.at(self.index, told, mixed, dim)
        if last_only and self.restores:
            mixed = state.select_rows(mixed, Rows.ALL)
        return mixed
