"""The training loop: schedules, averaging, and resuming bit for bit."""

from __future__ import annotations

import math
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dsno.recipes.choices import Decay
from dsno.recipes.schema import Optimisation
from dsno.support import seeds
from dsno.support.errors import InputError, WorkError
from dsno.support.files import sha256
from dsno.training import watch
from dsno.training.checkpoints import Checkpoints
from dsno.training.checkpoints import newest as newest_whole
from dsno.training.learning_rate import LearningRate
from dsno.training.loggers import Log
from dsno.training.losses import Objective
from dsno.training.prefetch import Batch
from dsno.training.trainer import train


class Given(Objective):
    """A model with any loss of the model and the step."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model]

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        found: tuple[Tensor, Tensor | None] = self.loss(self.model, batch["step"])
        return found


def fit(
    model: nn.Module, loss: Any, plan: Optimisation, folder: Path, tag: str, **more: Any
) -> Any:
    """Train with a loss of the model and the step."""

    def batches(step: int, places: range) -> Batch:
        rows = seeds.batch_items(0, step, 16, len(DATA))
        return {"items": rows[places.start : places.stop], "step": step}

    return train(Given(model, loss), batches, plan, folder, seed=0, tag=tag, **more)


def plan_of(**values: Any) -> Optimisation:
    return Optimisation(**{"batch_size": 16, "clip_norm": None, **values})


def rate_of(
    peak: float,
    steps: int,
    *,
    warmup_steps: int = 0,
    decay: Decay = "cosine",
    milestones: tuple[int, ...] = (),
    gamma: float = 0.5,
) -> LearningRate:
    return LearningRate(peak, steps, warmup_steps, decay, milestones, gamma)


DATA = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
PLAN = plan_of(
    steps=25, learning_rate=0.05, warmup_steps=3, checkpoint_every=4, log_every=6, clip_norm=1.0
)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 4))


def loss(model: nn.Module, step: int) -> tuple[Tensor, Tensor | None]:
    """Denoising of rows chosen by the step, with noise from torch's global generator."""
    clean = DATA[seeds.batch_items(0, step, 16, len(DATA))]
    error = (model(clean + torch.randn_like(clean)) - clean).square()
    return error.mean(), error.detach().mean(0)


def stop_at(step: int, act: Callable[[], None]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def wrapped(model: nn.Module, at: int) -> tuple[Tensor, Tensor | None]:
        if at == step:
            act()
        return loss(model, at)

    return wrapped


def crash() -> None:
    raise ZeroDivisionError


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module, list[Any]]:
    """An uninterrupted run: the model, its average, its history."""
    model = network()
    average, history = fit(model, loss, PLAN, tmp_path_factory.mktemp("whole"), tag="a")
    return model, average, history


# ------------------------------------------------------------------------- learning rates


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rate = rate_of(0.4, 100, warmup_steps=8, decay="constant")
    assert [rate(n) for n in range(8)] == pytest.approx([0.05 * (n + 1) for n in range(8)])
    assert rate(8) == rate(99) == 0.4


def test_cosine_falls_from_the_peak_to_zero() -> None:
    rate = rate_of(0.4, 110, warmup_steps=10)
    assert rate(10) == 0.4
    assert rate(60) == pytest.approx(0.2)
    assert rate(35) == pytest.approx(0.4 * math.cos(math.pi / 8) ** 2)
    assert rate(110) == pytest.approx(0)
    assert rate_of(1.0, 5, warmup_steps=5)(5) == 1.0  # no division by zero


def test_milestones_multiply_by_gamma_from_their_step_on() -> None:
    rate = rate_of(1.0, 9, decay="milestones", milestones=(3, 6), gamma=0.1)
    assert [rate(n) for n in (0, 2, 3, 5, 6, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("missing", ["steps", "batch_size", "learning_rate"])
def test_an_option_that_training_cannot_do_without_is_named(tmp_path: Path, missing: str) -> None:
    plan = plan_of(**{"steps": 1, "learning_rate": 1.0, missing: None})
    with pytest.raises(InputError, match=f"Training needs `{missing}`"):
        fit(network(), loss, plan, tmp_path, tag="a")


def test_the_optimiser_is_given_the_rate_of_each_step(tmp_path: Path) -> None:
    # With loss = w and no momentum, Adam moves by exactly the learning rate.
    model = nn.Linear(1, 1, bias=False).double()
    plan = plan_of(
        steps=6, learning_rate=0.1, warmup_steps=3, decay="constant", betas=(0.0, 0.0), log_every=1
    )
    weights = []

    def weight(module: nn.Module, step: int) -> tuple[Tensor, None]:
        weights.append(model.weight.item())
        return model.weight.sum(), None

    _, history = fit(model, weight, plan, tmp_path, tag="a")
    moves = -torch.tensor([*weights, model.weight.item()]).diff()
    expected = [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1]
    assert moves.tolist() == pytest.approx(expected, rel=1e-4)
    assert [row["learning_rate"] for row in history] == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------ the update


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    seen = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append(float(optimizer.param_groups[0]["params"][0].grad.norm()))

    def steep(model: nn.Module, step: int) -> tuple[Tensor, None]:
        return 300 * model.get_parameter("weight").sum(), None

    plan = plan_of(steps=3, learning_rate=1e-3, clip_norm=0.25, log_every=1)
    handle = register_optimizer_step_pre_hook(look)
    try:
        _, history = fit(nn.Linear(4, 1, bias=False), steep, plan, tmp_path, tag="a")
    finally:
        handle.remove()
    assert seen == pytest.approx([0.25] * 3, rel=1e-4)
    assert history[0]["gradient_norm"] == pytest.approx(600)  # before clipping


def test_average_is_the_written_out_recursion(tmp_path: Path) -> None:
    for decay in (0.5, 0.9999):  # reached after 8 updates, never reached
        trail: list[Tensor] = []

        def watched(model: nn.Module, step: int, trail: list[Tensor] = trail) -> Any:
            trail.append(model.get_parameter("0.weight").detach().clone())
            return loss(model, step)

        model = network()
        plan = plan_of(steps=25, learning_rate=0.05, ema_decay=decay)
        average, _ = fit(model, watched, plan, tmp_path / str(decay), tag="a")
        weights = [*trail[1:], model.get_parameter("0.weight").detach()]
        expected = weights[0].double()
        for n, weight in enumerate(weights[1:], start=1):
            kept = min(decay, (1 + n) / (10 + n))
            expected = kept * expected + (1 - kept) * weight
        assert torch.allclose(average.get_parameter("0.weight").double(), expected, atol=1e-6)
        assert not average.training


def test_history_holds_the_mean_of_each_window(tmp_path: Path) -> None:
    values = [5.0, 1.0, 3.0, 2.0, 8.0]

    def given(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        per_time = torch.tensor([values[step], 2 * values[step]])
        return model(torch.zeros(1)).sum() * 0 + values[step], per_time

    plan = plan_of(steps=5, learning_rate=0.1, log_every=2)
    _, history = fit(nn.Linear(1, 1), given, plan, tmp_path, tag="a")
    assert [row["step"] for row in history] == [2, 4, 5]
    assert [row["loss"] for row in history] == [3.0, 2.5, 8.0]
    assert [row["per_time"] for row in history] == [[3.0, 6.0], [2.5, 5.0], [8.0, 16.0]]


def test_history_holds_the_mean_at_each_time_of_the_steps_that_have_it(tmp_path: Path) -> None:
    def given(model: nn.Module, step: int) -> tuple[Tensor, Tensor | None]:
        value = model(torch.zeros(1)).sum() * 0 + step
        return value, None if step % 3 else torch.tensor([float(step), 2.0])

    plan = plan_of(steps=8, learning_rate=0.1, log_every=2)
    _, history = fit(nn.Linear(1, 1), given, plan, tmp_path, tag="a")
    assert [row["loss"] for row in history] == [0.5, 2.5, 4.5, 6.5]
    assert [row.get("per_time") for row in history] == [[0.0, 2.0], [3.0, 2.0], None, [6.0, 2.0]]


def test_training_lowers_the_loss(whole: tuple[nn.Module, nn.Module, list[Any]]) -> None:
    assert whole[2][-1]["loss"] < whole[2][0]["loss"]


def test_the_time_spent_waiting_for_data_is_logged_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[float] = []
    monkeypatch.setattr(
        Log, "values", lambda _, values, step: logged.append(values["waiting_for_data"])
    )

    def slow(step: int, places: range) -> Batch:
        time.sleep(0.03)
        return {"items": torch.tensor(places), "step": step}

    plan = plan_of(steps=6, learning_rate=0.1, log_every=2)
    train(Given(network(), loss), slow, plan, tmp_path, seed=0, tag="a", label="a training")
    assert len(logged) == 3
    assert all(0.1 < share < 1 for share in logged)
    assert "a training: " in (said := capsys.readouterr().err)
    assert "% of the time was spent waiting for data" in said


# -------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("step", [0, 3, 4, 11, 24])
def test_a_crashed_run_resumes_to_the_same_bits(
    tmp_path: Path, whole: tuple[nn.Module, nn.Module, list[Any]], step: int
) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(network(), stop_at(step, crash), PLAN, tmp_path, tag="a")
    torch.randn(7)  # the global generator's state does not matter
    model = network()
    steps: list[int] = []

    def counted(module: nn.Module, at: int) -> tuple[Tensor, Tensor | None]:
        steps.append(at)
        return loss(module, at)

    average, history = fit(model, counted, PLAN, tmp_path, tag="a")
    assert steps == list(range(step // 4 * 4, 25))  # from the newest checkpoint
    assert same(model, whole[0])
    assert same(average, whole[1])
    assert history == whole[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [5, 24])
def test_an_interrupted_run_saves_its_step_and_resumes_from_it(
    tmp_path: Path,
    whole: tuple[nn.Module, nn.Module, list[Any]],
    capsys: pytest.CaptureFixture[str],
    step: int,
    number: signal.Signals,
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        fit(network(), stop_at(step, lambda: os.kill(os.getpid(), number)), PLAN, tmp_path, tag="a")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert f"Interrupted at step {step + 1};" in capsys.readouterr().err
    assert (tmp_path / f"step-{step + 1:08d}.pt").is_file()
    model = network()
    average, history = fit(model, loss, PLAN, tmp_path, tag="a")
    assert f"Resuming from step {step + 1} (" in capsys.readouterr().err
    assert same(model, whole[0])
    assert same(average, whole[1])
    assert history == whole[2]


def test_a_training_goes_on_from_the_end_of_a_shorter_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(steps: int, decay: Decay) -> Optimisation:
        return plan_of(steps=steps, learning_rate=0.05, decay=decay, log_every=1)

    def steps_and_rates(steps: int, decay: Decay, folder: Path, **more: Any) -> Any:
        seen: list[int] = []

        def counted(module: nn.Module, at: int) -> tuple[Tensor, Tensor | None]:
            seen.append(at)
            return loss(module, at)

        average, history = fit(network(), counted, plan(steps, decay), folder, "b", **more)
        return average, history, seen

    for decay in ("constant", "cosine"):
        folder = tmp_path / decay
        fit(network(), loss, plan(6, decay), folder / "short", tag="a")
        earlier = [Checkpoints(folder / "none", "a"), Checkpoints(folder / "short", "a")]
        average, history, seen = steps_and_rates(10, decay, folder / "long", earlier=earlier)
        whole, rows, _ = steps_and_rates(10, decay, folder / "whole")
        assert seen == [6, 7, 8, 9]
        assert "Resuming from step 6 (" in capsys.readouterr().err
        assert [row["step"] for row in history] == list(range(1, 11))
        assert same(average, whole) == (decay == "constant")
        assert (history == rows) == (decay == "constant")
        if decay == "cosine":  # of ten steps from the seventh on
            expected = [0.025 * (1 + math.cos(math.pi * n / 10)) for n in range(6, 10)]
            assert [row["learning_rate"] for row in history[6:]] == pytest.approx(expected)


def test_the_newest_checkpoint_is_moved_whole(tmp_path: Path) -> None:
    fit(network(), loss, PLAN, tmp_path / "from", tag="a")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "step-00000003.pt").write_text("an older one")
    newest = sha256(tmp_path / "from" / "step-00000025.pt")
    Checkpoints(tmp_path / "from", "a").move_newest(tmp_path / "to")
    names = [f"step-00000025.{kind}" for kind in ("pt", "sha256")]
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == names
    assert sha256(tmp_path / "to" / names[0]) == newest
    assert not (tmp_path / "from" / names[0]).exists()
    moved = Checkpoints(tmp_path / "to", "a")
    assert newest_whole([moved]) == (moved, 25)
    assert newest_whole([Checkpoints(tmp_path / "to", "b")]) is None
    Checkpoints(tmp_path / "empty", "a").move_newest(tmp_path / "to")  # nothing to move
    assert newest_whole([moved]) == (moved, 25)
    (tmp_path / "to" / names[1]).write_text("0" * 64)
    assert newest_whole([moved]) is None


def test_the_newest_whole_checkpoint_wins_whichever_folder_it_is_in(
    tmp_path: Path,
    whole: tuple[nn.Module, nn.Module, list[Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, step in (("own", 10), ("other", 18)):  # up to step 8, and 16
        with pytest.raises(ZeroDivisionError):
            fit(network(), stop_at(step, crash), PLAN, tmp_path / name, tag="a")
    break_by_truncation(tmp_path / "other" / "step-00000016.pt")
    others = [Checkpoints(tmp_path / name, "a") for name in ("none", "other")]
    assert newest_whole([Checkpoints(tmp_path / "own", "a"), *others]) == (others[1], 12)
    average, _ = fit(network(), loss, PLAN, tmp_path / "own", tag="a", earlier=others)
    assert "Resuming from step 12 (" in capsys.readouterr().err
    assert same(average, whole[1])


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    fit(network(), loss, PLAN, tmp_path, tag="a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-000000{step}.{kind}" for step in (24, 25) for kind in ("pt", "sha256")
    ]


def break_by_truncation(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def break_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def break_by_garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 100)


def break_by_flipping_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def break_by_another_shape(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "model": {}, "average": {}, "optimizer": {}}, path)
    seal(path)


def break_by_another_state(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "state": {**saved["state"], "step": -3}}, path)
    seal(path)


def break_by_a_number_cut_short(path: Path) -> None:
    path.write_bytes(b"\x80\x02J")  # the reader's own error is none of torch's
    seal(path)


def break_by_another_content(path: Path) -> None:
    torch.save([1, 2, 3], path)
    seal(path)


def break_by_losing_its_checksum(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


def seal(path: Path) -> None:
    """Write the checksum that belongs to a file."""
    path.with_suffix(".sha256").write_text(sha256(path))


@pytest.mark.parametrize(
    "damage",
    [
        break_by_truncation,
        break_by_emptying,
        break_by_garbage,
        break_by_flipping_a_bit,
        break_by_losing_its_checksum,
        break_by_another_shape,
        break_by_another_content,
        break_by_another_state,
        break_by_a_number_cut_short,
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path,
    whole: tuple[nn.Module, nn.Module, list[Any]],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(network(), stop_at(18, crash), PLAN, tmp_path, tag="a")
    damage(tmp_path / "step-00000016.pt")
    average, history = fit(network(), loss, PLAN, tmp_path, tag="a")
    err = capsys.readouterr().err
    assert "step-00000016.pt is damaged and is not used" in err
    assert "Resuming from step 12 (" in err
    assert same(average, whole[1])
    assert history == whole[2]


def test_a_checkpoint_never_runs_code(
    tmp_path: Path, whole: tuple[nn.Module, nn.Module, list[Any]]
) -> None:
    mark = tmp_path / "mark"

    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-00000016.pt").write_bytes(pickle.dumps(Attack()))
    torch.save({"tag": "a", "state": Attack()}, folder / "step-00000012.pt")
    for path in list(folder.iterdir()):
        seal(path)
    average, _ = fit(network(), loss, PLAN, folder, tag="a")
    assert not mark.exists()
    assert same(average, whole[1])


def test_a_checkpoint_of_another_tag_is_not_used_and_does_not_push_ours_out(
    tmp_path: Path,
    whole: tuple[nn.Module, nn.Module, list[Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = plan_of(steps=100, learning_rate=0.5, checkpoint_every=30)
    fit(network(), loss, other, tmp_path, tag="b")  # leaves steps 60 and 90
    with pytest.raises(ZeroDivisionError):
        fit(network(), stop_at(10, crash), PLAN, tmp_path, tag="a")
    capsys.readouterr()
    average, _ = fit(network(), loss, PLAN, tmp_path, tag="a")
    err = capsys.readouterr().err
    assert "step-00000090.pt is from another recipe and is not used" in err
    assert "Resuming from step 8 (" in err
    assert same(average, whole[1])


# --------------------------------------------------------------------------------- failure


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(
    tmp_path: Path, bad: float
) -> None:
    def broken(model: nn.Module, step: int) -> tuple[Tensor, Tensor | None]:
        value, per_time = loss(model, step)
        return (value * bad if step == 10 else value), per_time

    with pytest.raises(WorkError) as caught:
        fit(network(), broken, PLAN, tmp_path, tag="a")
    text = str(caught.value)
    assert f"became {bad} at step 10" in text
    assert str(tmp_path / "step-00000008.pt") in text
    assert "learning rate" in text
    assert "\n" not in text
    assert text.count(". ") == 0
    assert caught.value.exit_code == 1
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-00000004.pt", "step-00000008.pt"]


class Bad(Given):
    """A loss that is infinite for some items at step 9; all others, later ones too, are finite."""

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        value, _ = super().forward(batch)
        return (value + math.inf if batch["step"] == 9 and batch["is_bad"] else value), None


def test_an_infinite_loss_between_two_looks_is_found_before_anything_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.time, "perf_counter", lambda: 0.0)  # so quick that looks are rare
    made: list[int] = []

    def batches(step: int, places: range) -> Batch:
        made.append(step)
        rows = torch.arange(100, 116)[places.start : places.stop]
        return {"items": rows, "step": step, "is_bad": places.start == 12}

    model = network()
    plan = PLAN.model_copy(update={"accumulation": 4})
    with pytest.raises(WorkError) as caught:
        train(Bad(model, loss), batches, plan, tmp_path, seed=0, tag="a")
    assert str(caught.value).startswith(
        "The loss became inf at step 9 (items 112, 113, 114, 115 of the data); the last good "
        f"checkpoint is {tmp_path / 'step-00000008.pt'}; "
    )
    assert max(made) >= 11  # two more steps were done, whose losses are finite
    assert all(p.isfinite().all() for p in model.parameters())
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-00000004.pt", "step-00000008.pt"]
    assert newest_whole([Checkpoints(tmp_path, "a")]) == (Checkpoints(tmp_path, "a"), 8)


def test_what_a_bad_step_makes_fail_before_the_next_look_is_laid_to_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.time, "perf_counter", lambda: 0.0)

    def fragile(model: nn.Module, step: int) -> tuple[Tensor, None]:
        weights = model.get_parameter("0.weight")
        if not weights.isfinite().all():
            raise ValueError("no number")
        return weights.sum() * (math.nan if step == 9 else 1), None

    with pytest.raises(WorkError, match="The loss became nan at step 9 "):
        fit(network(), fragile, PLAN.model_copy(update={"checkpoint_every": 20}), tmp_path, tag="a")


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    def root(model: nn.Module, step: int) -> tuple[Tensor, None]:
        return model(torch.zeros(1, 4)).square().sum() * 0 + model(DATA).sum().mul(0).sqrt(), None

    with pytest.raises(WorkError, match=r"gradient.* at step 0; there is no checkpoint yet"):
        fit(network(), root, PLAN, tmp_path, tag="a")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def save_on_full_disk(value: object, _: object) -> None:
        with open("/dev/full", "wb") as file:
            save(value, file)

    monkeypatch.setattr(torch, "save", save_on_full_disk)
    with pytest.raises(WorkError, match=r"The disk is full: .*step-00000004\.pt was not written"):
        fit(network(), loss, PLAN, tmp_path, tag="a")
    assert list(tmp_path.iterdir()) == []
