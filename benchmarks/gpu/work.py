"""What a part of a visit is given: time, folders, scale; and how it keeps its results."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsno.recipes import Recipe, load_recipe
from dsno.support import distributed
from gpu import results

TOY = (
    "teacher.network.channels=[8, 8]",
    "teacher.network.attention=[]",
    "teacher.network.middle_attention=false",
    "teacher.network.norm_num_groups=8",
    "teacher.batch_size=4",
    "teacher.warmup_steps=1",
    "collect.count=32",
    "collect.steps=4",
    "collect.batch_size=16",
    "collect.shard_size=16",
    "train.batch_size=4",
    "train.warmup_steps=1",
    "teacher.log_every=1",
    "train.log_every=1",
    "train.trajectory_every=2",
    "finish.batch_size=4",
    "finish.warmup_steps=1",
    "finish.log_every=1",
    "evaluate.samples=16",
    "evaluate.batch_size=16",
    "evaluate.curves=[{solver: ddim, steps: [1, 2]}]",
)
"""The recipe `cifar10-small` at toy size."""
TOY_SECONDS = 0.5
"""Of every training of a rehearsal."""


@dataclass(frozen=True)
class Work:
    """A part's work.

    Attributes:
        part: its name.
        out: folder of what is to come back.
        scratch: folder of what is not; the parts of a visit share it.
        weights: folders with weights of earlier visits, the first that has some counts.
        data: npz file of real images; empty if there is none.
        until: when to be finished, in seconds of `time.time`.
        toy: at toy size, on whatever there is.
        commit: of the code.
        command: of the visit.
        only: of each part the pieces whose name has one of these words; all if it is empty.
    """

    part: str
    out: Path
    scratch: Path
    weights: tuple[Path, ...]
    data: str
    until: float
    toy: bool
    commit: str
    command: str
    only: tuple[str, ...] = ()

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Work:
        """What `to_json` wrote."""
        values = json.loads(text)
        folders = {key: Path(values[key]) for key in ("out", "scratch")}
        lists = {"weights": tuple(map(Path, values["weights"])), "only": tuple(values["only"])}
        return cls(**{**values, **folders, **lists})

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return distributed.device()

    # ------------------------------------------------------------------------------- time

    def left(self) -> float:
        """Seconds until the end; a rehearsal has as many as it needs."""
        return 3600.0 if self.toy else self.until - time.time()

    def span(self, share: float, keep: float = 0.0) -> float:
        """Seconds to train for: a share of what is left after `keep` seconds; little in a toy."""
        return TOY_SECONDS if self.toy else share * max(self.left() - keep, 0.0)

    # ------------------------------------------------------------------------------- scale

    def recipe(self, *changes: str) -> Recipe:
        """`cifar10-small` on the visit's images, with changes."""
        toy = TOY if self.toy else ()
        data = ("data.source=npz", f"data.path={self.data}")
        return load_recipe("cifar10-small", [*data, *toy, *changes])

    def scaled(self, real: int, toy: int) -> int:
        """A number, or its stand-in for a rehearsal."""
        return toy if self.toy else real

    # ----------------------------------------------------------------------------- results

    def record(
        self, figure: str, setting: str, value: float | None, unit: str = "", **more: Any
    ) -> None:
        """Keep a figure; without a value it was not run, and `why` says why."""
        found = {"figure": figure, "setting": setting, "value": value, "unit": unit, **more}
        results.append(self.out, {**self.origin(), **found})
        print(f"{figure} ({setting}): {value} {unit} {more.get('why', '')}".strip(), flush=True)

    def origin(self) -> dict[str, Any]:
        """Where a number comes from."""
        return {
            "part": self.part,
            "command": self.command,
            "commit": self.commit,
            "device": distributed.device_name(),
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        }

    def wants(self, name: str) -> bool:
        """Whether a piece of this name is to be done."""
        return not self.only or any(word in name for word in self.only)

    def section(self, name: str, run: Callable[[], object], seconds: float = 0.0) -> None:
        """Do a piece of the part; what goes wrong in it is recorded, and the next piece follows.

        Args:
            name: what it measures.
            run: does it.
            seconds: that it should need; with less left it is not begun.
        """
        if not self.wants(name):
            return
        if self.left() < seconds:
            self.record(name, "", None, why=results.MISSING, reason="no time left")
            return
        try:
            run()
        except Exception as error:
            traceback.print_exc()
            reason = (str(error).splitlines() or [""])[0]
            self.record(
                name, "", None, why=results.FAILED, reason=f"{type(error).__name__}: {reason}"
            )
        finally:
            tidy()


def tidy() -> None:
    """Give back memory and forget compiled code, so that one piece does not weigh on the next."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
