"""Worker threads: what each computes with, in what order results come, and what an error does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.support.threads import Workers, cores, per_thread, with_same_weights

CPU = torch.device("cpu")


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("quota", "expected"),
    [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("900000 100000", 4), (None, 4)],
)
def test_cores_are_torch_threads_or_the_quota_of_a_container(
    tmp_path: Path, quota: str | None, expected: int
) -> None:
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(quota + "\n")
    assert cores(path) == expected


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("device", "most", "given", "count", "threads"),
    [
        ("cpu", 2, None, 2, 2),
        ("cpu", 8, None, 4, 1),
        ("cpu", 3, None, 3, 1),
        ("cpu", 1, None, 1, 4),
        ("cpu", 2, 1, 2, 1),
        ("cpu", 1, 1, 1, 1),
        ("meta", 8, None, 1, 4),
    ],
)
def test_workers_divide_the_threads_of_torch_and_give_them_back(
    device: str, most: int, given: int | None, count: int, threads: int
) -> None:
    everyone_is_here = threading.Barrier(count)

    def look(_: int) -> tuple[int, int]:
        everyone_is_here.wait(30)
        return threading.get_ident(), torch.get_num_threads()

    with Workers(torch.device(device), most, threads=given) as workers:
        found = workers.map(look, range(count))
        assert torch.get_num_threads() == threads
    assert len({ident for ident, _ in found}) == workers.count == count
    assert {number for _, number in found} == {threads}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_the_order_of_their_items() -> None:
    second_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            second_is_done.set()
        elif item == 0:
            assert second_is_done.wait(30)
        return item * item

    with Workers(CPU, 2) as workers:
        assert workers.map(work, range(5)) == [0, 1, 4, 9, 16]


@pytest.mark.usefixtures("four_threads")
def test_after_an_error_no_item_is_begun_and_the_error_is_raised() -> None:
    begun: list[int] = []
    has_failed = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        yield 1
        assert has_failed.wait(30)
        yield from range(2, 1000)

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            try:
                raise ZeroDivisionError("item 0")
            finally:
                has_failed.set()
        # until the error is known
        threading.Event().wait(0.05)

    with Workers(CPU, 2) as workers, pytest.raises(ZeroDivisionError, match="item 0"):
        workers.share(work, items())
    assert len(begun) <= 3


class Remembering(nn.Module):
    """A network that two threads cannot run at a time: it keeps its input between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(3.0))
        self.seen = torch.zeros(0)

    def forward(self, x: torch.Tensor, *, meet: threading.Barrier) -> torch.Tensor:
        self.seen = x
        meet.wait(30)
        scale: torch.Tensor = self.scale
        return scale * self.seen


@pytest.mark.usefixtures("four_threads")
def test_two_threads_run_copies_that_keep_nothing_in_common() -> None:
    mine, meet = per_thread(Remembering()), threading.Barrier(2)
    inputs = [torch.tensor([float(i)]) for i in range(2)]
    with Workers(CPU, 2) as workers:
        found = workers.map(lambda x: mine()(x, meet=meet), inputs)
    assert [float(x) for x in found] == [0.0, 3.0]


def test_the_calling_thread_has_the_model_itself() -> None:
    model = Remembering()
    assert per_thread(model)() is model


def test_copies_share_weights_and_not_gradients() -> None:
    model = Remembering()
    model.layer.bias.requires_grad_(False)
    twin = with_same_weights(model)
    assert twin.layer is not model.layer
    assert not twin.layer.bias.requires_grad
    model.layer(torch.ones(1, 2)).sum().backward()
    assert twin.layer.weight.grad is None
    with torch.no_grad():
        model.layer.weight.fill_(7)
        model.scale.fill_(5)
    assert twin.layer.weight.tolist() == [[7, 7], [7, 7]]
    assert float(twin.scale) == 5


def test_a_guided_denoiser_is_copied_without_its_weights() -> None:
    network = nn.Linear(2, 2)
    inner = Denoiser(network, CosineSchedule(), prediction_type="v_prediction", sample_shape=(2,))
    twin = with_same_weights(GuidedDenoiser(inner, 2.0, {}))
    assert isinstance(twin.inner.network, nn.Linear)
    assert twin.inner.network is not network
    assert twin.inner.network.weight.data_ptr() == network.weight.data_ptr()
