"""What a network does when it runs, and which rows its submodules therefore need.

A network's code is not looked at; it is run, on zeros, on noise or on tensors without data, and its
submodules are watched. `dsno.operator.batch_plan` says what the kinds of submodule found here are.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from dsno.backbones.sites import inside
from dsno.diffusion.conditions import GUIDANCE_SCALE, Condition
from dsno.diffusion.denoisers import Denoiser
from dsno.operator.batch_plan import BatchPlan, BatchState, FixedTensor, Side
from dsno.operator.shapes import ShapesOnly
from dsno.support.errors import InputError, closest

TIMES_TRIED = 16
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What a network raises that is given a number of rows that it cannot deal with."""


class Call(NamedTuple):
    """One call of a submodule.

    Attributes:
        start, end: when, counting the starts and ends of all calls.
        shape: of its output, or the first of them; None if that is no tensor.
        inputs: lengths of the leaves of (arguments, keyword arguments), flattened; None for a leaf
            that is no tensor, or a scalar.
        outputs: the same of its output.
    """

    start: int
    end: int
    shape: tuple[int, ...] | None
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


def trace(denoiser: Denoiser, condition: Condition | None) -> dict[str, list[Call]]:
    """Run the network once on zeros; return the calls of each of its submodules that ran."""
    with _watched(dict(denoiser.network.named_modules())) as calls, torch.no_grad(), ShapesOnly():
        denoiser(_zeros(denoiser, 1), _one(), condition)
    return calls


@contextlib.contextmanager
def _watched(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Note the calls of modules, by their names."""
    calls: dict[str, list[Call]] = {}
    begun: list[tuple[int, tuple[int | None, ...]]] = []
    clock = 0

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal clock
        begun.append((clock, _lengths((args, kwargs))))
        clock += 1

    def behind(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal clock
            first = output[0] if isinstance(output, tuple) else output
            shape = tuple(first.shape) if isinstance(first, Tensor) else None
            start, inputs = begun.pop()
            call = Call(start, clock, shape, inputs, _lengths(output))
            calls.setdefault(name, []).append(call)
            clock += 1

        return record

    handles: list[Any] = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(behind(name)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _lengths(value: Any) -> tuple[int | None, ...]:
    """Of each leaf: its length, or None if it is no tensor, or a scalar."""
    leaves = tree_flatten(value)[0]
    return tuple(len(x) if isinstance(x, Tensor) and x.ndim else None for x in leaves)


def site_channels(
    calls: Mapping[str, Sequence[Call]], sites: Sequence[str], channel_dim: int
) -> list[int]:
    """Channels of the output of each site.

    Raises:
        InputError: if a site never runs or its output is not a tensor with channels.
    """
    channels = []
    for site in sites:
        if site not in calls:
            raise InputError(f"Site {site!r} is never run by the network's forward pass.")
        shape = calls[site][-1].shape
        if shape is None or len(shape) < 2:
            raise InputError(f"The output of site {site!r} is not a tensor with channels.")
        channels.append(shape[channel_dim])
    return channels


def find_plan(
    network: nn.Module,
    calls: Mapping[str, Sequence[Call]],
    sites: Sequence[str],
    shared: Sequence[str],
) -> BatchPlan:
    """Sort a network's submodules by the slices they have to see; each as a whole where it can be.

    Nothing is final if the site that runs last runs more than once.

    Raises:
        InputError: for a shared submodule that never runs, or not before time is first mixed.
    """
    for name in shared:
        if name not in calls:
            raise InputError(
                f"The shared submodule {name!r} is never run by the network's forward pass."
            )
        if sites and calls[name][-1].end > min(calls[site][0].end for site in sites):
            raise InputError(
                f"The shared submodule {name!r} runs after time was mixed, so its input is not the "
                "same for all slices; share submodules that run earlier, or mix time later."
            )
    last, end = "", -1.0
    if sites:
        last = max(sites, key=lambda site: calls[site][-1].end)
        end = calls[last][-1].end
        if len(calls[last]) > 1:
            last, end = "", math.inf
    lifted: list[str] = []
    final: list[str] = []

    def sort(parent: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            name = f"{parent}.{child_name}" if parent else child_name
            runs = calls.get(name, ())
            if name in shared:
                continue
            if runs and runs[0].start > end:
                final.append(name)
                continue
            holds_shared = any(inside(inner, [name]) for inner in shared)
            if runs and shared and not holds_shared:
                lifted.append(name)
            if not runs or holds_shared or any(run.start < end < run.end for run in runs):
                sort(name, child)

    sort("", network)
    return BatchPlan(shared=tuple(shared), lifted=tuple(lifted), final=tuple(final), last_site=last)


class _Reached(Exception):
    """Time is mixed here."""


def find_constant(
    denoiser: Denoiser,
    condition: Condition | None,
    calls: Mapping[str, Sequence[Call]],
    sites: Sequence[str],
    plan: BatchPlan,
) -> tuple[str, ...]:
    """Layers that neither the network's time input nor the mixing of times reaches.

    In a U-Net they are the first convolution and that of the first block in front of its time
    embedding. Candidates are layers with weights and without submodules, outside of shared and
    final ones: their output for one input must be the same bits at each of 16 times that fill
    [0, 1]. Noise is added to the weights for that, so that weights which are still zero hide
    nothing. None are found in a network without data.
    """
    x = _zeros(denoiser, TIMES_TRIED)
    if not sites or x.is_meta:
        return ()
    first = min(sites, key=lambda site: calls[site][0].end)
    taken = (*plan.shared, *plan.final)
    generator = torch.Generator().manual_seed(0)
    network = copy.deepcopy(denoiser.network).requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))
    x = torch.randn(x.shape[1:], generator=generator).to(x).expand_as(x).contiguous()
    given = {k: v.expand(len(x), *v.shape[1:]) for k, v in (condition or {}).items()}
    given.pop(GUIDANCE_SCALE, None)
    outputs: dict[str, list[Tensor | None]] = {}

    def behind(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            whole = all(
                isinstance(t, Tensor) and t.ndim > 2 and len(t) == len(x)
                for t in (args[0] if args else None, output)
            )
            # a copy: the network may go on to change it in place
            outputs.setdefault(name, []).append(output.clone() if whole else None)

        return record

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached

    for name, layer in network.named_modules():
        looked_at = (
            not list(layer.children())
            and list(layer.parameters())
            and not isinstance(layer, nn.modules.batchnorm._NormBase)  # looks at all rows at once
            and name in calls
            and calls[name][-1].end < calls[first][0].end
            and not inside(name, taken)
        )
        if looked_at:
            layer.register_forward_hook(behind(name))
    network.get_submodule(first).register_forward_hook(stop)
    for times in torch.full((len(x),), 0.5), torch.linspace(0, 1, len(x)):
        c_noise = denoiser.preconditioning.c_noise(times.double())
        c_noise = c_noise.to(x.device, torch.promote_types(x.dtype, torch.float32))
        with torch.no_grad(), contextlib.suppress(_Reached):
            denoiser.call(network, x, c_noise, given)
    return tuple(name for name, found in outputs.items() if _same(found))


def _same(outputs: Sequence[Tensor | None]) -> bool:
    """Whether a layer was called once in each of two runs and gave the same."""
    one, other = (*outputs, None, None)[:2]
    return len(outputs) == 2 and one is not None and other is not None and one.equal(other)


class _Trial(nn.Module):
    """A network, which may be a submodule of its owner, and how it is called."""

    def __init__(self, owner: nn.Module, network: nn.Module, denoiser: Denoiser) -> None:
        super().__init__()
        self.owner = owner
        self.run = (denoiser.call, network)  # a tuple: not a submodule for the second time

    def forward(self, x: Tensor, c_noise: Tensor, given: Condition) -> Tensor:
        call, network = self.run
        return call(network, x, c_noise, given)


def _try(
    owner: nn.Module,
    network: nn.Module,
    denoiser: Denoiser,
    condition: Condition | None,
    rows: int,
) -> Tensor | None:
    """The network's output for tensors without data, for free; None if it cannot run so."""
    x = _zeros(denoiser, rows).to("meta")
    given = {k: v.to("meta") for k, v in (condition or {}).items() if k != GUIDANCE_SCALE}
    given = {k: v.expand(rows, *v.shape[1:]) for k, v in given.items()}
    trial = _Trial(owner, network, denoiser)
    tensors = {**dict(trial.named_parameters()), **dict(trial.named_buffers())}
    nothing = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    c_noise = torch.zeros(rows, device="meta")
    try:
        with torch.no_grad(), ShapesOnly():
            output: Tensor = torch.func.functional_call(trial, nothing, (x, c_noise, given))
    except FAILURES:
        return None
    return output


def find_fixed(
    denoiser: Denoiser,
    condition: Condition | None,
    calls: Mapping[str, Sequence[Call]],
    plan: BatchPlan,
) -> tuple[FixedTensor, ...]:
    """Tensors given to or returned by the plan's submodules whose length is not the batch's.

    It is the same in `calls`, the network's `trace`, and for three rows. None are found in a
    network that does not run on tensors without data.
    """
    names = [*plan.constant, *plan.shared, *plan.lifted, *plan.final]
    if not names:
        return ()
    modules = {name: denoiser.network.get_submodule(name) for name in names}
    with _watched(modules) as longer:
        if _try(denoiser.network, denoiser.network, denoiser, condition, 3) is None:
            return ()
    seen: list[tuple[int, str, Side, tuple[int | None, ...], tuple[int | None, ...]]] = []
    for name in names:
        for one, three in zip(calls.get(name, ()), longer.get(name, ()), strict=False):
            seen.append((one.start, name, "input", one.inputs, three.inputs))
            seen.append((one.end, name, "output", one.outputs, three.outputs))
    return tuple(
        dict.fromkeys(  # each once, in the order in which the network comes to them
            FixedTensor(name, side, position)
            for _, name, side, few, many in sorted(seen, key=lambda entry: entry[0])
            for position, (a, b) in enumerate(zip(few, many, strict=False))
            if a is not None and a == b
        )
    )


def run_until(
    network: nn.Module, calls: Mapping[str, Sequence[Call]], readout: str
) -> tuple[str, ...]:
    """The readout and the submodules that run in front of it, each as a whole where it can be.

    Raises:
        InputError: for a readout that is not there or does not run exactly once.
    """
    names = [name for name, _ in network.named_modules() if name]
    if readout not in names:
        raise InputError(
            f"The network has no submodule {readout!r} to be its readout: {closest(readout, names)}"
        )
    runs = len(calls.get(readout, ()))
    if runs != 1:
        raise InputError(
            f"The readout {readout!r} runs {runs} times in the network's forward pass, and it has "
            "to run once; name another layer."
        )
    end = calls[readout][0].end
    found: list[str] = []

    def collect(parent: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            name = f"{parent}.{child_name}" if parent else child_name
            if name in calls and calls[name][-1].end <= end:
                found.append(name)
            else:
                collect(name, child)

    collect("", network)
    return tuple(found)


def rows_out(
    network: nn.Module, denoiser: Denoiser, condition: Condition | None, rows: int
) -> int | None:
    """How many rows a network that is called as the denoiser's gives for so many; None if it fails.

    Unlike `_try` it computes, as not every network runs on tensors without data.
    """
    x = _zeros(denoiser, rows)
    given = {k: v for k, v in (condition or {}).items() if k != GUIDANCE_SCALE}
    given = {k: v.expand(rows, *v.shape[1:]) for k, v in given.items()}
    told = denoiser.preconditioning.c_noise(torch.ones(rows, dtype=torch.float64))
    told = told.to(x.device, torch.promote_types(x.dtype, torch.float32))
    try:
        with torch.no_grad():
            return len(denoiser.call(network, x, told, given))
    except FAILURES:
        return None


def runs_unrestored(
    lifted: nn.Module,
    network: nn.Module,
    plan: BatchPlan,
    state: BatchState,
    denoiser: Denoiser,
    condition: Condition | None,
) -> bool:
    """Whether the network's own code never combines tensors of different rows.

    Tried with a number of samples that neither broadcasts nor is a whole number of slices.

    Args:
        lifted: what holds the network, its hooks and their layers.
        network: the network in it.
        plan: its batch plan.
        state: what its hooks share.
        denoiser: says how the network is called.
        condition: one row of conditioning for a network that needs it to run.
    """
    count = state.layout.count
    samples = count + 1
    # each way of asking in which some submodule lacks rows, and at least one
    ways = [*([False] if plan.shared else []), *([True] if plan.last_site else [])]
    for last_only in ways or [False]:
        state.set(state.layout, samples, last_only=last_only, embedding=None)
        output = _try(lifted, network, denoiser, condition, samples * count)
        state.set(state.layout, 1, embedding=None)
        expected = (samples, samples * count) if last_only else (samples * count,)
        if output is None or len(output) not in expected:
            return False
    return True


def _zeros(denoiser: Denoiser, rows: int) -> Tensor:
    weight = next(denoiser.network.parameters())
    return torch.zeros(rows, *denoiser.sample_shape, dtype=weight.dtype, device=weight.device)


def _one() -> Tensor:
    return torch.ones((), dtype=torch.float64)
