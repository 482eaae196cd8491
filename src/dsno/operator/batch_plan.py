"""Which rows of the batch each submodule of a lifted network works on, and the hooks that do it.

A batch has a row for every slice of every sample. Not every submodule needs all of them:

* `constant` submodules, which nothing about time reaches, see each sample once; the numbers stay
  the same but for rounding;
* `shared` submodules see each sample once, at the time of its first slice;
* `lifted` submodules see every slice;
* `final` submodules see the last slice alone when nothing but t = 0 is wanted. They run after time
  is mixed for the last time, so the last slice's rows are all that its output depends on.

A tensor that goes from one submodule to another is given the rows of the one it enters: a hook in
front of it repeats or picks rows in every argument. The network's own code may combine tensors of
two such submodules on the way (EDM's networks concatenate skips); the plan then `restores` all rows
behind every submodule that reduced them, which costs copies, but no arithmetic.

A `BatchPlan` is fixed when the network is lifted and saved with it. What changes from batch to
batch is the `BatchState`, one object that all hooks of a network hold, because a network's own code
would not pass it on. It lives as follows: `DSNO.forward` sets it, then calls the network; the hooks
read it during that forward pass; and it stays as it is until the backward pass is over, since
gradient checkpointing runs submodules, and so their hooks, once more there. With checkpointing,
each forward pass must therefore be followed by its backward pass before the next; and a network
must not run in two threads at a time (`dsno.support.threads` gives each thread a copy).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dsno.operator.guidance_embedding import SiteShifts
from dsno.operator.temporal import SliceLayout, TemporalLayer
from dsno.support.errors import InputError

Side = Literal["input", "output"]


@dataclass(frozen=True)
class FixedTensor:
    """A tensor at a submodule's boundary without a row per sample: a table of positions, say.

    Whatever its length, its rows are left alone.

    Attributes:
        module: name of the submodule.
        side: whether the submodule is given it or returns it.
        position: its index among the leaves of (arguments, keyword arguments), or of the output,
            both flattened.
    """

    module: str
    side: Side
    position: int

    def to_text(self) -> str:
        """The form in a saved configuration: `block < 1` is an input, `block > 0` an output."""
        return f"{self.module} {'<' if self.side == 'input' else '>'} {self.position}"

    @classmethod
    def from_text(cls, text: str) -> FixedTensor:
        """The inverse of `to_text`.

        Raises:
            ValueError: for another text.
        """
        match = re.fullmatch(r"(\S+) ([<>]) ([0-9]{1,4})", text)
        if match is None:
            raise ValueError(f"expected 'NAME < INDEX' or 'NAME > INDEX', found {text!r}")
        module, sign, position = match.groups()
        return cls(module, "input" if sign == "<" else "output", int(position))


@dataclass(frozen=True)
class BatchPlan:
    """The submodules of a network that do not simply see the rows they are given; by default none.

    Attributes:
        constant: names of those that see each sample once, with all rows restored behind them.
        shared: names of those that see each sample once.
        lifted: names of those that see every slice, where they might be given shared tensors.
        final: names of those that may see the last slice alone.
        last_site: where time is mixed for the last time; empty if it is not mixed, or if that site
            runs more than once.
        fixed: tensors given to or returned by these submodules that have no row per sample.
        restores: whether all rows are restored behind shared and final submodules.
    """

    constant: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    lifted: tuple[str, ...] = ()
    final: tuple[str, ...] = ()
    last_site: str = ""
    fixed: tuple[FixedTensor, ...] = ()
    restores: bool = False

    def to_config(self) -> dict[str, Any]:
        """As JSON-able values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        listed = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {**listed, "fixed": [tensor.to_text() for tensor in self.fixed]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> BatchPlan:
        """From `to_config`'s values; None for none.

        Raises:
            InputError: for other values.
        """
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for name, value in (config or {}).items():
            if name not in known:
                raise InputError(
                    f"The model's configuration has an unknown entry parts.{name}: expected "
                    f"{', '.join(known)}."
                )
            values[name] = _read_entry(name, value)
        return cls(**values)


def _read_entry(name: str, value: Any) -> Any:
    """One entry of a saved plan.

    Raises:
        InputError: for a value of another type.
    """
    readers = {
        "restores": (_typed(bool), "true or false"),
        "last_site": (_typed(str), "a submodule's name"),
        "fixed": (_listed(FixedTensor.from_text), "a list of texts such as 'block < 1'"),
    }
    read, expected = readers.get(name, (_listed(str), "a list of submodules' names"))
    try:
        return read(value)
    except ValueError:
        raise InputError(
            f"The model's configuration has a wrong entry parts.{name}: expected {expected}, found "
            f"{value!r:.60}."
        ) from None


def _typed(kind: type) -> Callable[[Any], Any]:
    """A reader of values of one type; ValueError for others."""

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError
        return value

    return read


def _listed(item: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A reader of lists of texts; ValueError for other values."""

    def read(value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError
        return tuple(map(item, value))

    return read


class Rows(Enum):
    """Which of a batch's rows."""

    SHARED = "the first of each sample"
    ALL = "all"
    LAST = "the last carrier's"


class BatchState:
    """What the hooks of one lifted network share: the batch in flight and the guidance input.

    The module's docstring says when it is set and read.

    Attributes:
        layout: how the batch's rows are laid out in time.
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
        """Prepare for the forward and backward pass of a batch."""
        self.layout, self.batch = layout, batch
        self.last_only, self.embedding = last_only, embedding

    def select_rows(self, value: Any, rows: Rows, fixed: Collection[int] = ()) -> Any:
        """Give every tensor in nested tuples, lists and dictionaries the rows asked for.

        Those at the positions `fixed` of the flattened value are left alone.
        """
        leaves, structure = tree_flatten(value)
        selected = [
            self._select(x, rows) if isinstance(x, Tensor) and i not in fixed else x
            for i, x in enumerate(leaves)
        ]
        return tree_unflatten(selected, structure)

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


class SubmoduleHooks:
    """In front of a submodule: give its arguments its rows. Behind it: restore all, if need be."""

    def __init__(
        self, rows: Rows, state: BatchState, plan: BatchPlan, name: str, *, restores: bool
    ) -> None:
        self.rows, self.state, self.restores = rows, state, restores
        # whether arguments may have fewer rows than all
        self.may_lack_rows = bool(plan.shared) and not plan.restores

        def positions(side: Side) -> set[int]:
            return {f.position for f in plan.fixed if (f.module, f.side) == (name, side)}

        self.fixed_inputs, self.fixed_outputs = positions("input"), positions("output")

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
        if rows is Rows.ALL and not self.may_lack_rows:
            return None
        return self.state.select_rows((args, kwargs), rows, self.fixed_inputs)

    def behind(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook."""
        return self.state.select_rows(output, Rows.ALL, self.fixed_outputs)


def _on_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A submodule's output with its tensor changed, or the first of them."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


class ShiftHook:
    """A forward hook where the guidance scale enters and time is not mixed."""

    def __init__(self, index: int, state: BatchState, channel_dim: int) -> None:
        self.index, self.state, self.channel_dim = index, state, channel_dim

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook."""
        return _on_first(output, self._shift)

    def _shift(self, u: Tensor) -> Tensor:
        state = self.state
        if state.shifts is None or state.embedding is None:
            return u
        rows = Rows.SHARED if u.shape[0] == state.batch else Rows.ALL
        embedding = cast(Tensor, state.select_rows(state.embedding, rows))
        return u + state.shifts.at(self.index, embedding, u, self.channel_dim)


class TemporalHook:
    """A forward hook that owns its layer, so that `deepcopy` (EMA) copies both together."""

    def __init__(
        self, index: int, layer: TemporalLayer, state: BatchState, *, last: bool, restores: bool
    ) -> None:
        self.index, self.layer, self.state = index, layer, state
        self.last, self.restores = last, restores

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook."""
        return _on_first(output, self._mix)

    def _mix(self, u: Tensor) -> Tensor:
        state = self.state
        u = state.select_rows(u, Rows.ALL)  # a site may end with a shared submodule
        last_only = self.last and state.last_only
        mixed: Tensor = self.layer(u, state.layout, last_only=last_only)
        if state.shifts is not None and state.embedding is not None:
            embedding = state.embedding
            if last_only:
                embedding = cast(Tensor, state.select_rows(embedding, Rows.LAST))
            dim = self.layer.conv.channel_dim
            mixed = mixed + state.shifts.at(self.index, embedding, mixed, dim)
        if last_only and self.restores:
            mixed = state.select_rows(mixed, Rows.ALL)
        return mixed
