"""What is remembered of tensors without data is what PyTorch computes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from tests import makers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsno.operator.shapes import ShapesOnly

A = torch.empty(4, 6, device="meta")


class Watched(TorchDispatchMode):
    """Names of the kernels that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(kernel))
        return kernel(*args, **(kwargs or {}))


def unet() -> nn.Module:
    return makers.unet2d()


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        num_layers=2,
        sample_size=16,
        patch_size=4,
        num_embeds_ada_norm=4,
    )


def forms_inside(network: nn.Module, rows: int) -> list[Any]:
    """Shape, strides and type of what each submodule puts out."""
    found: list[Any] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append((output.shape, output.stride(), output.dtype, output.device.type))

    handles = [module.register_forward_hook(note) for module in network.modules()]
    config: Any = network.config
    x = torch.empty(rows, config.in_channels, 16, 16, device="meta")
    labels = {"class_labels": torch.empty(rows, dtype=torch.long, device="meta")}
    with torch.no_grad():
        network(
            x, torch.empty(rows, device="meta"), **(labels if "DiT" in str(type(network)) else {})
        )
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("make", [unet, dit])
def test_every_layer_puts_out_what_it_does_otherwise(make: Callable[[], nn.Module]) -> None:
    network = make().to("meta").eval()
    for rows in (2, 3):
        expected = forms_inside(network, rows)
        for _ in range(2):
            with ShapesOnly():
                assert forms_inside(network, rows) == expected


def test_a_kernel_runs_once_for_inputs_of_one_form() -> None:
    with Watched() as watched, ShapesOnly():
        for rows in (5, 5, 7, 5):
            x = torch.empty(rows, 17, device="meta")
            assert torch.nn.functional.silu(x).shape == (rows, 17)
    assert watched.names.count("aten.silu.default") == 2


def test_numbers_of_different_types_are_told_apart() -> None:
    whole = torch.empty(3, dtype=torch.long, device="meta")
    with ShapesOnly():
        assert [(whole + n).dtype for n in (1, 1.0, True)] == [
            torch.int64,
            torch.float32,
            torch.int64,
        ]


def test_a_result_is_a_tensor_of_its_own() -> None:
    with ShapesOnly():
        first = A + 1
        first.t_()
        assert first.shape == (6, 4)
        assert (A + 1).shape == (4, 6)
        assert (A.t() + 1).stride() == A.t().stride()


def test_data_stay_data() -> None:
    with ShapesOnly():
        for _ in range(2):
            assert torch.equal(A.new_ones(2, device="cpu"), torch.ones(2))
            assert torch.equal(torch.arange(3) + 1, torch.tensor([1, 2, 3]))
            assert torch.equal(torch.ops.aten.ones.default([2]), torch.ones(2))  # no device named


def test_what_fails_fails_each_time() -> None:
    with ShapesOnly():
        for _ in range(2):
            with pytest.raises(RuntimeError):
                A @ A
            with pytest.raises(RuntimeError):
                A.sum().item()
