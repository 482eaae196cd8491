"""One batch split in any way gives the same losses; checkpoints move between the ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.launched import training as work
from tests.launched.processes import Launch
from torch import Tensor, nn

from dsno.support import distributed
from dsno.support.errors import InputError
from dsno.training.engine import Engine
from dsno.training.split import micro_batches

LAUNCHED = ("plain", "accumulated", "sharded_accumulated_checkpointed", "bf16")
MATCHING = ("matching", "matching_sharded")
Run = tuple[dict[str, Tensor], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained, a folder for each way."""
    out = tmp_path_factory.mktemp("launched")
    names = [*LAUNCHED, "resumed", "stopped_sharded", *MATCHING]
    job = Launch(2, "tests.launched.training:main", [out, names], out.with_suffix(".log"))
    assert job.end() == [0, 0], job.said()
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same in one process, in one piece."""
    return work.fit(tmp_path_factory.mktemp("alone"))


def read(folder: Path) -> Run:
    history = json.loads((folder / "history.json").read_text())["history"]
    return load_file(folder / "weights.safetensors"), history


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]], rel: float) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [1, 2, 3, 4]
    for key in ("loss", "gradient_norm", "per_time"):
        for a, b in zip(found, expected, strict=True):
            assert a[key] == pytest.approx(b[key], rel=rel)


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Distribution matching in one process."""
    return work.match(tmp_path_factory.mktemp("matched"))


@pytest.mark.parametrize("way", MATCHING)
def test_two_processes_match_distributions_as_one_does(
    launched: Path, matched: Run, way: str
) -> None:
    weights, history = read(launched / way)
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    for key in ("loss", "gradient_norm"):
        for found, expected in zip(history, matched[1], strict=True):
            assert found[key] == pytest.approx(expected[key], rel=1e-4)
    assert weights.keys() == matched[0].keys()
    close = [torch.isclose(weights[k], matched[0][k], atol=1e-5).flatten() for k in weights]
    assert torch.cat(close).float().mean() > 0.9


def test_checkpointed_matching_changes_no_bit_and_computes_both_networks_again(
    tmp_path: Path, matched: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, counts = work.matching(), [0, 0, 0]
    for i, network in enumerate(objective.networks):

        def count(*_: Any, i: int = i) -> None:
            counts[i] += 1

        network.down_blocks[0].resnets[0].register_forward_pre_hook(count)
    monkeypatch.setattr(work, "matching", lambda: objective)
    weights, history = work.match(tmp_path, gradient_checkpointing=True)
    assert history == matched[1]
    assert all(torch.equal(weights[k], matched[0][k]) for k in weights)
    # In 4 steps, of which the student learns in 2: its samples, and again for its gradients; the
    # second network denoises, again for its gradients, and judges in 2; the teacher judges.
    assert counts == [4 + 2, 4 + 4 + 2, 2]


def test_half_precision_matching_is_near_and_not_the_same(tmp_path: Path, matched: Run) -> None:
    _, history = work.match(tmp_path, mixed_precision="bf16", steps=2)
    for found, expected in zip(history, matched[1], strict=False):
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)
        assert found["loss"] != expected["loss"]


def test_all_three_networks_of_matching_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    objective = work.matching()
    monkeypatch.setattr(work, "matching", lambda: objective)
    work.match(tmp_path, compile=True, steps=1)
    assert list(map(id, compiled)) == list(map(id, objective.networks))
    assert len({*map(id, compiled)}) == 3


def test_the_second_network_learns_at_its_own_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = work.matching()
    monkeypatch.setattr(work, "matching", lambda: objective)
    before = {k: v.clone() for k, v in objective.model.state_dict().items()}
    work.match(tmp_path, steps=1)  # of the second network alone
    moved = {k: (v - before[k]).abs() for k, v in objective.model.state_dict().items()}
    fake = torch.cat([v.flatten() for k, v in moved.items() if k.startswith("fake.network.")])
    # Adam's first step is as long as the rate: five times 1e-3
    assert fake.median().item() == pytest.approx(5e-3, rel=1e-3)
    assert not any(v.any() for k, v in moved.items() if k.startswith("student."))


@pytest.mark.parametrize("way", LAUNCHED[:-1])
def test_two_processes_give_the_losses_of_one(launched: Path, alone: Run, way: str) -> None:
    weights, history = read(launched / way)
    assert_close(history, alone[1], rel=2e-5)
    assert weights.keys() == alone[0].keys()
    # Adam divides by the gradient's size: where that is rounding noise, so is the step (4 x 2e-3).
    close = [torch.isclose(weights[k], alone[0][k], atol=1e-5).flatten() for k in weights]
    assert torch.cat(close).float().mean() > 0.9


def test_accumulation_gives_the_losses_of_one_piece(tmp_path: Path, alone: Run) -> None:
    assert_close(work.fit(tmp_path, accumulation=4)[1], alone[1], rel=2e-5)


def test_half_precision_is_near_and_not_the_same(launched: Path, alone: Run) -> None:
    _, history = read(launched / "bf16")
    assert_close(history, alone[1], rel=0.05)
    assert abs(history[0]["loss"] - alone[1][0]["loss"]) > 1e-6


def test_gradient_checkpointing_changes_no_bit(tmp_path: Path, alone: Run) -> None:
    weights, history = work.fit(tmp_path, gradient_checkpointing=True)
    assert history == alone[1]
    assert all(torch.equal(weights[k], alone[0][k]) for k in weights)


def test_gradient_checkpointing_runs_the_blocks_again(tmp_path: Path) -> None:
    counts = []
    for again in (False, True):
        objective = work.objective()
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        objective.networks[0].down_blocks[0].resnets[0].register_forward_pre_hook(count)
        plan = work.PLAN.model_copy(update={"steps": 1, "gradient_checkpointing": again})
        work.train(objective, work.batches, plan, tmp_path / str(again), seed=0, tag="t")
        counts.append(calls)
    assert counts == [1, 2]


def test_a_network_without_gradient_checkpointing_is_named(tmp_path: Path) -> None:
    class Plain(work.TrajectoryObjective):
        @property
        def networks(self) -> list[nn.Module]:
            return [nn.Linear(1, 1)]

    objective = work.objective()
    plain = Plain(objective.model, torch.ones(2), torch.ones(2))
    plan = work.PLAN.model_copy(update={"gradient_checkpointing": True})
    with pytest.raises(InputError, match="Linear has no gradient checkpointing; set"):
        work.train(plain, work.batches, plan, tmp_path, seed=0, tag="t")


def test_two_processes_stopped_and_resumed_end_with_the_same_bits(launched: Path) -> None:
    weights, history = read(launched / "resumed")
    whole, expected = read(launched / "plain")
    assert history == expected
    assert all(torch.equal(weights[k], whole[k]) for k in whole)


def test_a_sharded_run_is_resumed_by_one_process(
    launched: Path, alone: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _, history = work.fit(launched / "stopped_sharded" / "checkpoints")
    assert "Resuming from step 2 (" in capsys.readouterr().err
    assert_close(history, alone[1], rel=2e-5)


@pytest.mark.slow
def test_compilation_changes_the_losses_by_rounding_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_weights, expected = work.fit(tmp_path / "plain", channels=(8,))
    compiled = []
    compile_ = nn.Module.compile

    def fast(module: nn.Module) -> None:  # without the minute a code generator takes
        compiled.append(module)
        compile_(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", fast)
    weights, history = work.fit(tmp_path / "compiled", channels=(8,), compile=True)
    assert len(compiled) == 1
    assert_close(history, expected, rel=2e-5)
    assert weights.keys() == expected_weights.keys()


class Replayed(torch.autograd.Function):
    """Like a CUDA graph: leaves the gradient of its weight where the next replay puts another."""

    place = torch.zeros(2)

    @staticmethod
    def forward(context: Any, weight: Tensor, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        Replayed.place.zero_()  # the memory is used again
        return weight * x

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = context.saved_tensors
        return Replayed.place.copy_(gradients[0] * x).view(2), None


@pytest.mark.parametrize("replays", [False, True])
def test_gradients_that_a_graph_would_overwrite_are_copied_before_the_next_piece(
    replays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    monkeypatch.setattr(nn.Module, "compile", lambda _, mode: modes.append(mode))
    modes: list[str] = []
    engine, network = Engine(), nn.Module()
    network.weight = nn.Parameter(torch.ones(2))
    if replays:
        engine.device = torch.device("cuda")
        engine.compile(network, "reduce-overhead")
    pieces = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    for i, x in enumerate(pieces):
        with engine.gradients(network, last=i == 2):
            engine.backward(Replayed.apply(network.weight, x).sum())
    assert modes == ["reduce-overhead"] * replays
    assert len(begun) == 3 * replays
    expected = [111.0, 222.0] if replays else None
    found = network.weight.grad.tolist()
    assert found == expected if replays else found != [111.0, 222.0]  # or this shows nothing


def test_convolutions_hand_on_channels_last_and_the_losses_agree_to_rounding(
    tmp_path: Path, alone: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    call = nn.Conv2d.forward

    def watched(layer: nn.Conv2d, x: Tensor) -> Tensor:
        made = call(layer, x)
        seen.append(made.is_contiguous(memory_format=torch.channels_last))
        return made

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    weights, history = work.fit(tmp_path, channels_last=True)
    assert all(seen)
    assert_close(history, alone[1], rel=2e-5)
    assert all(w.is_contiguous() for w in weights.values())


def test_the_micro_batches_of_all_processes_are_the_batch() -> None:
    pieces = [
        piece
        for rank in range(4)
        for piece in micro_batches(24, accumulation=3, rank=rank, world_size=4)
    ]
    assert [row for piece in pieces for row in piece] == list(range(24))
    assert [len(piece) for piece in pieces] == [2] * 12


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="A batch of 10 does not divide into 2 processes x 2"):
        micro_batches(10, accumulation=2, rank=0, world_size=2)


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    if distributed.device().type != "cpu":
        pytest.skip("this machine has one")
    with pytest.raises(InputError, match="fp16 needs a GPU; use mixed_precision bf16 or no"):
        work.fit(tmp_path, mixed_precision="fp16")
