"""Run code on tensors without data, and each kernel once for inputs of one form.

On the `meta` device PyTorch computes shapes alone, but by Python code that takes longer than the
arithmetic of a small network. What it gives depends on nothing but the form of the inputs, and a
network repeats its blocks, so it is remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

REMEMBERED = 4096
"""Results kept: of some ten networks."""


@dataclass(frozen=True)
class _Form:
    """All that there is to a plain tensor on the meta device without gradient."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> _Form:
        return cls(tuple(x.shape), x.stride(), x.dtype)

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class ShapesOnly(TorchDispatchMode):
    """While it is on, kernels on the meta device run once for inputs of one form.

    Those that take no tensor, change one, return a view of one, or make one elsewhere run as ever.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        kernel: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every kernel."""
        kwargs = kwargs or {}
        leaves, structure = tree_flatten((args, kwargs))
        # of no tensor it could make one anywhere
        takes_some = any(isinstance(x, Tensor) for x in leaves)
        if takes_some and _makes_tensors(kernel) and all(map(_has_form, leaves)):
            forms = tuple(_Form.of(x) if isinstance(x, Tensor) else x for x in leaves)
            # by type too, as 1 == 1.0 == True
            made = _result(kernel, structure, forms, tuple(map(type, leaves)))
            return tree_map_only(_Form, _Form.make, made)
        return kernel(*args, **kwargs)


@functools.cache
def _makes_tensors(kernel: Any) -> bool:
    """Whether all that it does is to return new tensors."""
    schema = kernel._schema
    return not schema.is_mutable and all(value.alias_info is None for value in schema.returns)


def _has_form(leaf: Any) -> bool:
    """Whether an argument is fully described by its form or by its value."""
    if isinstance(leaf, Tensor):
        return leaf.is_meta and type(leaf) in (Tensor, torch.nn.Parameter)
    if isinstance(leaf, torch.device):
        return leaf.type == "meta"
    return leaf is None or isinstance(
        leaf, int | float | str | torch.dtype | torch.layout | torch.memory_format
    )


@functools.lru_cache(maxsize=REMEMBERED)
def _result(
    kernel: Any, structure: TreeSpec, forms: tuple[Any, ...], types: tuple[type, ...]
) -> Any:
    leaves = [form.make() if isinstance(form, _Form) else form for form in forms]
    args, kwargs = tree_unflatten(leaves, structure)
    return tree_map_only(Tensor, _Form.of, kernel(*args, **kwargs))
