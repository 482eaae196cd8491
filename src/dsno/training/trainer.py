"""One training loop, for teacher and student.

Every random draw of step n is seeded from (seed, n) and what each row of its batch holds is a
function of (seed, n, row): so a run stopped anywhere and resumed from a checkpoint is the run
that never stopped, and the batch may be split over processes and accumulation in any way.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from dsno.recipes.schema import Optimisation
from dsno.support import distributed, seeds
from dsno.support.adapters import adapter
from dsno.support.console import progress, say
from dsno.support.environment import peak_memory
from dsno.support.errors import InputError, WorkError
from dsno.support.signals import interruption_delayed
from dsno.support.threads import Workers
from dsno.training.average import average_of, update_average
from dsno.training.checkpoints import Checkpoints, newest_first
from dsno.training.guard import Guard, Look
from dsno.training.learning_rate import LearningRate
from dsno.training.loggers import Log, check_trackers
from dsno.training.losses import Objective
from dsno.training.memory_format import lay_out
from dsno.training.prefetch import Batch, Prefetcher, threads_for
from dsno.training.replicas import Replicas, replicas_of
from dsno.training.split import micro_batches
from dsno.training.waiting import Waiting
from dsno.training.watch import Watch

Value = TypeVar("Value")
ITEMS = "items"
"""Key of a batch's row numbers in its data, which an error names."""

Batches = Callable[[int, range], Batch]
"""batches(step, rows): those rows of the step's batch, with `items`, their numbers in the data."""

Preview = Callable[[nn.Module], Tensor]
"""preview(model) -> images (n, C, H, W) in [-1, 1]."""


# What the content of a foreign checkpoint raises when it is put back.
DAMAGED = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_Float32 = Annotated[float, Field(ge=-1e39, le=1e39)]


class Row(TypedDict):
    """What is recorded of the steps since the last record."""

    step: int
    loss: _Float32
    learning_rate: _Float32
    gradient_norm: _Float32
    per_time: NotRequired[list[_Float32]]


@dataclass
class _State:
    """Where a run stands: the step, the records so far and the sums since the last of them."""

    step: int = 0
    history: list[Row] = field(default_factory=list)
    losses: list[_Float32] = field(default_factory=list)
    norms: list[_Float32] = field(default_factory=list)
    per_time: list[list[_Float32]] = field(default_factory=list)
    since_checkpoint: list[_Float32] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    looks: list[Look] = field(default_factory=list)

    @classmethod
    def read(cls, value: Any) -> _State:
        """The state that a checkpoint holds; a ValueError if it is none."""
        state = adapter(cls).validate_python(value)
        steps = [0, *(row["step"] for row in state.history), state.step + 1]
        times = [*state.per_time, *(row["per_time"] for row in state.history if "per_time" in row)]
        looked = [-1, *(look["step"] for look in state.looks), state.step + 1]
        is_possible = (
            steps == sorted(set(steps))
            and looked == sorted(set(looked))
            and 0 <= state.best_step <= state.step
            and len(set(map(len, times))) <= 1
        )
        if not is_possible:
            raise ValueError("no state")
        return state

    def add(self, loss: float, per_time: list[float], norm: float) -> None:
        """Note the results of a step, once they are looked at."""
        self.losses.append(loss)
        self.since_checkpoint.append(loss)
        self.norms.append(norm)
        if per_time:
            self.per_time.append(per_time)

    def close_window(self, rate: float) -> None:
        row: Row = {
            "step": self.step,
            "loss": _mean(self.losses),
            "learning_rate": rate,
            "gradient_norm": _mean(self.norms),
        }
        if self.per_time:
            row["per_time"] = [_mean(list(column)) for column in zip(*self.per_time, strict=True)]
        self.history.append(row)
        self.losses, self.norms, self.per_time = [], [], []

    def at_checkpoint(self, guard: Guard | None) -> None:
        """Note which step is the best so far.

        It is the guard's best; without one, that with the lowest loss since the checkpoint before.
        """
        loss = _mean(self.since_checkpoint) if self.since_checkpoint else math.inf
        self.since_checkpoint = []
        if guard is not None:
            self.best_step = guard.best(self.looks)["step"]
        elif loss < self.best_loss:
            self.best_step, self.best_loss = self.step, loss


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def train(
    objective: Objective,
    batches: Batches,
    options: Optimisation,
    checkpoints: Path,
    *,
    seed: int,
    tag: str,
    earlier: Sequence[Checkpoints] = (),
    label: str = "training",
    log_folder: Path | None = None,
    preview: Preview | None = None,
    rate: Callable[[int], float] | None = None,
    guard: Guard | None = None,
) -> tuple[nn.Module, list[Row]]:
    """Train `objective.model`, from its newest checkpoint if there is one.

    The last step leaves a checkpoint too. Under a launcher every process calls this; all return the
    same.

    Args:
        objective: the model with its loss; changed in place and moved to the device.
        batches: makes the data, in threads of their own; must draw from `seeds` only.
        options: how; its steps, batch_size and learning_rate must be given.
        checkpoints: folder of checkpoints, the same for all processes.
        seed: of every random draw.
        tag: identifies what is trained; a checkpoint with another tag is not used.
        earlier: where else to look for one to go on from.
        label: of the progress bar.
        log_folder: where trackers write; its last part names the run.
        preview: samples to log.
        rate: the learning rate of a step, counted from 0; as the options say by default.
        guard: looks at the model at every checkpoint, and says which one is kept and when to stop.

    Returns:
        The averaged model, of the last step or the guard's best, in eval mode on the CPU (of
        sharded ones on process 0 only), and the history: one record per `log_every` steps with
        `step`, `loss` (their mean), `per_time` (the mean of the steps that have it),
        `learning_rate`, `gradient_norm`.

    Raises:
        InputError: if an option is missing, the batch cannot be split, or the hardware or network
            lacks what is asked.
        WorkError: if the loss or its gradient is not finite; the last good checkpoint stays.
    """
    return _Training(
        objective,
        batches,
        options,
        Checkpoints(checkpoints, tag, options.keep),
        seed=seed,
        earlier=earlier,
        label=label,
        log_folder=log_folder,
        preview=preview,
        rate=rate,
        guard=guard,
    ).run()


class _Training:
    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        options: Optimisation,
        checkpoints: Checkpoints,
        *,
        seed: int,
        earlier: Sequence[Checkpoints],
        label: str,
        log_folder: Path | None,
        preview: Preview | None,
        rate: Callable[[int], float] | None,
        guard: Guard | None,
    ) -> None:
        # PyTorch's sharding and checkpoints: a second
        from dsno.training.engine import Engine, checkpoint_activations

        self.options, self.batches, self.label, self.preview = options, batches, label, preview
        self.guard = guard
        self.checkpoints, self.seed = checkpoints, seed
        self.steps = _given(options.steps, "steps")
        self.batch_size = _given(options.batch_size, "batch_size")
        peak = _given(options.learning_rate, "learning_rate")
        self.rate = rate or LearningRate.of(options)
        self.objective, self.model = objective, objective.model
        replicas = replicas_of(options, distributed.device())
        self.places = micro_batches(
            self.batch_size,
            accumulation=options.accumulation,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            replicas=replicas,
        )
        trackers = options.log_with if log_folder is not None else ()
        check_trackers(trackers)
        self.engine = Engine(
            mixed_precision=options.mixed_precision,
            shard=options.shard,
            log_with=trackers,
            log_folder=None if log_folder is None else log_folder.parent,
        )
        objective.to(self.engine.device)
        if options.gradient_checkpointing:
            for network in objective.networks:
                checkpoint_activations(network)
        if options.channels_last:
            for network in objective.networks:
                lay_out(network, torch.channels_last)
        self.template = self.engine.template(self.model)
        self.average = average_of(self.model)
        first = batches(0, self.places[0])
        self.worker = self.engine.spread(objective, [self.average], _without_items(first))
        for network in objective.networks:
            self.engine.compile(network, options.compile)
        groups = list(objective.groups())
        self.factors = [factor for _, factor in groups]
        self.optimizer = self.engine.optimizer(
            [weights for weights, _ in groups],
            lr=peak,
            betas=options.betas,
            weight_decay=options.weight_decay,
        )
        self.state = self._resume([checkpoints, *earlier])
        self.replicas = Replicas(self.worker, replicas)
        self.workers = Workers(self.engine.device, replicas, threads=1 if replicas > 1 else None)
        name = "" if log_folder is None else log_folder.name
        self.log = Log(self.engine.accelerator, name, self.state.step)
        self.watch, self.waiting = Watch(), Waiting(self.engine.device)

    def run(self) -> tuple[nn.Module, list[Row]]:
        options, state = self.options, self.state
        for replica in self.replicas.modules:
            replica.train()
        if self.guard is not None and not state.looks:
            self._save()
        pieces = (
            (step, i) for step in range(state.step, self.steps) for i in range(len(self.places))
        )
        with (
            progress(self.label, self.steps, done=state.step, unit="step") as advance,
            interruption_delayed() as interrupted,
            self.workers,
            Prefetcher(
                self._batch,
                pieces,
                pin=self.engine.device.type == "cuda",
                threads=threads_for(self.engine.device),
            ) as prefetched,
        ):
            while state.step < self.steps and self._why_stop() is None:
                try:
                    is_asked = self._step(prefetched, interrupted)
                except Exception:
                    self._look()  # what failed may be the consequence of an earlier step's loss
                    raise
                stop = self._is_look_due(is_asked) and self._look()
                is_last = state.step == self.steps
                if is_last or state.step % options.log_every == 0:
                    self._close_window()
                advance(1, note=self._note())
                if stop or is_last or state.step % options.checkpoint_every == 0:
                    self._save()
                if options.log_images_every and state.step % options.log_images_every == 0:
                    self._log_images()
                if stop:
                    say(f"Interrupted at step {state.step:,}; the same command goes on from there.")
                    raise KeyboardInterrupt
        self.log.finish()
        if (line := self.waiting.line(self.label)) is not None:
            say(line)
        self._keep_best()
        averaged = self.engine.whole(self.template, self.average.module)
        lay_out(averaged, torch.contiguous_format)  # as files of weights are
        return averaged.cpu().eval(), state.history

    def _batch(self, piece: tuple[int, int]) -> Batch:
        step, index = piece
        return self.batches(step, self.places[index])

    # ------------------------------------------------------------------------------ one step

    def _step(self, prefetched: Prefetcher, interrupted: Callable[[], bool]) -> bool:
        """Do one step, without waiting for the device; return whether this process is to stop."""
        state, options, pieces = self.state, self.options, len(self.places)
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = factor * self.rate(state.step)
        self.optimizer.zero_grad(set_to_none=True)
        values, items = [], []
        for first in range(0, pieces, self.replicas.count):
            batches = [self.waiting.next(prefetched) for _ in self.replicas.modules]
            values += self._pieces(batches, first)
            items += [batch.get(ITEMS, ()) for batch in batches]
        self.replicas.add_gradients()
        limit = math.inf if options.clip_norm is None else options.clip_norm
        norm = self.engine.clip(limit, self.optimizer)
        is_asked = interrupted()
        self.watch.keep(state.step, values, items, norm, is_asked=is_asked)
        self.engine.step(self.optimizer)
        update_average(self.average, self.model, state.step, options.ema_decay)
        state.step += 1
        return is_asked

    def _is_look_due(self, is_asked: bool) -> bool:
        """Whether to look at the results now: in time, and before anything of them is kept."""
        options, step = self.options, self.state.step
        every = (options.log_every, options.checkpoint_every, options.log_images_every)
        return (
            self.watch.is_due
            or step == self.steps
            or any(n and step % n == 0 for n in every)
            or (is_asked and distributed.world_size() == 1)  # many have to agree on the step
        )

    def _look(self) -> bool:
        """Note the results so far; return whether any process was asked to stop.

        Raises:
            WorkError: if one of them is not finite.
        """
        seen = self.watch.look()
        for result in seen:
            self._require_finite("loss", result.loss, result.step, result.bad)
            if not self.engine.scales_loss:
                self._require_finite("gradient's norm", result.norm, result.step, [])
            self.state.add(result.loss, result.per_time, result.norm)
        return any(result.is_asked for result in seen)

    def _pieces(self, batches: Sequence[Batch], first: int) -> list[Tensor]:
        """Compute a piece of the batch on each replica; see `_piece`."""
        return self.replicas.compute(
            lambda i: self._piece(self.replicas.modules[i], batches[i], first + i),
            lambda i: self._seed(first + i),
            self.workers,
        )

    def _seed(self, index: int) -> None:
        """Seed what is left to torch's own generator in a piece of the batch: dropout."""
        pieces, worlds = len(self.places), distributed.world_size()
        number = (self.state.step * worlds + distributed.rank()) * pieces + index
        torch.manual_seed(seeds.torch_seed(self.seed, seeds.TRAINING, number))

    def _piece(self, worker: nn.Module, batch: Batch, index: int) -> Tensor:
        """Add the gradients of one piece of the batch; return its loss and losses by time."""
        pieces = len(self.places)
        with self.engine.gradients(worker, last=index == pieces - 1):
            with self.engine.accelerator.autocast():
                rows = send_to_device(_without_items(batch), self.engine.device, non_blocking=True)
                loss, per_time = worker(rows)
            self.engine.backward(loss / pieces)
        found = [loss.detach().reshape(1).double()]
        return torch.cat(found if per_time is None else [*found, per_time.double()])

    def _require_finite(self, what: str, value: float, step: int, bad: list[int]) -> None:
        if math.isfinite(value):
            return
        items = [item for part in distributed.gathered(bad) for item in part]
        named = ", ".join(str(item) for item in items[:8]) + (
            f" and {len(items) - 8} more" if len(items) > 8 else ""
        )
        raise WorkError(
            f"The {what} became {value} at step {step}"
            f"{f' (items {named} of the data)' if items else ''}; {self.checkpoints.last_good()}; "
            "lower the learning rate or the gradient norm limit (`clip_norm`) and run again."
        )

    # --------------------------------------------------------------------------- what is kept

    def _close_window(self) -> None:
        state, last = self.state, self.state.history[-1]["step"] if self.state.history else 0
        state.close_window(self.rate(state.step - 1))
        row, (seconds, waited) = state.history[-1], self.waiting.close_window()
        values = {
            "loss": row["loss"],
            "learning_rate": row["learning_rate"],
            "gradient_norm": row["gradient_norm"],
            "samples_per_second": (state.step - last) * self.batch_size / seconds,
            "waiting_for_data": waited / seconds,
            "memory_gb": peak_memory(self.engine.device) / 1e9,
        }
        parts = enumerate(row.get("per_time", []))
        values |= {self.objective.part_name(i): v for i, v in parts}
        self.log.values(values, state.step)

    def _note(self) -> str:
        """What stands beside the progress bar."""
        if not self.state.history:
            return ""
        share = self.waiting.share
        waiting = "" if share is None else f", {share:.0%} waiting for data"
        return f"loss {self.state.history[-1]['loss']:.4f}{waiting}"

    def _log_images(self) -> None:
        if self.preview is None or self.options.shard or not distributed.is_main():
            return
        with torch.no_grad():
            self.log.images(self.preview(self.average.module.eval()), self.state.step)

    def _save(self) -> None:
        state = self.state
        # an interruption in between adds no look, so that it changes nothing
        is_due = state.step % self.options.checkpoint_every == 0 or state.step == self.steps
        if self.guard is not None and (is_due or not state.looks):
            with torch.no_grad():
                state.looks.append(self.guard.look(self.average.eval(), state.step))
        state.at_checkpoint(self.guard)
        content = {
            "state": {f.name: getattr(state, f.name) for f in dataclasses.fields(state)},
            **self.engine.states(self.model, self.average, self.optimizer),
        }
        if distributed.is_main():
            self.checkpoints.save(state.step, state.best_step, content)
        distributed.wait_for_everyone()

    def _why_stop(self) -> str | None:
        """Why the guard stops training; None if it does not."""
        return None if self.guard is None else self.guard.why_stop(self.state.looks)

    def _keep_best(self) -> None:
        """Put the guard's best average in place of the last.

        Raises:
            WorkError: if its checkpoint is damaged.
        """
        if self.guard is None:
            return
        state = self.state
        self.guard.looks = state.looks
        why, best = self._why_stop(), state.best_step
        if why is not None:
            say(f"{self.label}: stopped after step {state.step:,}, as {why}.")
        if best == state.step:
            return
        say(f"{self.label}: step {best:,} of {state.step:,} was the best; it is kept.")
        saved = self.checkpoints.read(self.checkpoints.path(best))
        if not all(distributed.gathered(saved is not None)) or saved is None:
            raise WorkError(
                f"The best model's checkpoint {self.checkpoints.path(best)} cannot be read; remove "
                f"{self.checkpoints.folder} and run again."
            )
        self.engine.load_average(saved, self.average)

    def _resume(self, where: Sequence[Checkpoints]) -> _State:
        """Load the newest whole checkpoint there is, if any; the same one in every process."""
        parts = self.model, self.average, self.optimizer
        start: Mapping[str, Any] | None = None
        found = distributed.on_main(lambda: newest_first(where))
        for checkpoints, path in found:
            saved = checkpoints.read(path)
            if not all(distributed.gathered(saved is not None)) or saved is None:
                continue
            start = start or copy.deepcopy(self.engine.states(*parts))
            try:
                state = _State.read(saved["state"])
                if checkpoints.path(state.step) != path or state.step > self.steps:
                    raise ValueError("another step's")
                self.engine.load(saved, *parts)
            except DAMAGED:
                checkpoints.say_damaged(path)
                continue
            say(f"Resuming from step {state.step:,} ({path}).")
            return state
        if start is not None:  # a damaged one may have been put back in part
            self.engine.load(start, *parts)
        return _State()


def _given(value: Value | None, name: str) -> Value:
    if value is None:
        raise InputError(f"Training needs `{name}`; give it.")
    return value


def _without_items(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key != ITEMS}
