"""In which precision a network computes: exactly, or as fast as the device can.

| name    | network                                                                | kernels       |
|---------|------------------------------------------------------------------------|---------------|
| `exact` | float32                                                                | deterministic |
| `tf32`  | float32, factors of products rounded to 10 bits where the device does  | the fastest   |
| `bf16`  | bfloat16 where autocast takes it                                       | the fastest   |

All else, the solver's states included, is computed as ever.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from dsno.diffusion.conditions import Condition
from dsno.diffusion.denoisers import Denoiser, DenoiserProtocol, NetworkCall
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.recipes.choices import Arithmetic
from dsno.support.errors import InputError


class CallsNetwork(Protocol):
    """A denoiser of a network, or an operator: `call` is how its network is called."""

    call: NetworkCall


Model = TypeVar("Model", bound=CallsNetwork)


@contextlib.contextmanager
def arithmetic(precision: Arithmetic) -> Iterator[None]:
    """Let the libraries compute so, and as before afterwards.

    Of bf16 it sets what is left in float32; `network_in` does the rest.
    """
    before, is_exact = torch.get_float32_matmul_precision(), precision == "exact"
    torch.set_float32_matmul_precision("highest" if is_exact else "high")
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=not is_exact, deterministic=is_exact, allow_tf32=not is_exact
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def network_in(
    denoiser: DenoiserProtocol, precision: Arithmetic, *, compiled: bool = False
) -> DenoiserProtocol:
    """The same denoiser with its network called so; it shares the weights.

    Args:
        denoiser: a network's, on its device.
        precision: of the network; used within `arithmetic`.
        compiled: whether the network is compiled, for each size of batch anew.

    Raises:
        InputError: if another than `exact` is asked of a denoiser whose network is not known.
    """
    if precision != "bf16" and not compiled:
        return denoiser
    if isinstance(denoiser, GuidedDenoiser):
        guided = copy.copy(denoiser)
        guided.inner = called_in(denoiser.inner, precision, compiled=compiled)
        return guided
    if isinstance(denoiser, Denoiser):
        return called_in(denoiser, precision, compiled=compiled)
    raise InputError(
        f"The network of a {type(denoiser).__name__} is not known, so it can neither compute in "
        "bf16 nor be compiled; leave `precision` and `compile` as they are by default."
    )


def called_in(model: Model, precision: Arithmetic, *, compiled: bool = False) -> Model:
    """The same model with its network called so; it shares the weights. As `network_in`."""
    if precision != "bf16" and not compiled:
        return model
    found = copy.copy(model)
    if compiled:
        found.call = _compiled(found.call)
    if precision == "bf16":
        found.call = _autocast(found.call)
    return found


def _compiled(call: NetworkCall) -> NetworkCall:
    # Sizes are few: whole batches, and those at the ends of a shard and of the collection.
    compiled: NetworkCall = torch.compile(call, dynamic=False)
    return compiled


def _autocast(call: NetworkCall) -> NetworkCall:
    def in_bf16(network: nn.Module, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return call(network, x, c_noise, condition)

    return in_bf16
