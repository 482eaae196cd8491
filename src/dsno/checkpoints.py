"""Checkpoints of a training run: the newest few and the best, each whole or not there."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsno.console import say
from dsno.files import replacing

# What a damaged or foreign file raises when it is read or put back.
DAMAGED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder.

    Attributes:
        folder: where they are: step-00000500.pt, ...
        tag: of the recipe; those of another are neither used nor removed for ours.
        keep: how many of the newest to keep, besides the best.
    """

    folder: Path
    tag: str
    keep: int = 2

    def paths(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"step-{step:08d}.pt"

    def last_good(self) -> str:
        """For people: which checkpoint is the newest."""
        paths = self.paths()
        return f"the last good checkpoint is {paths[0]}" if paths else "there is no checkpoint yet"

    def save(self, step: int, best: int, content: Mapping[str, Any]) -> None:
        """Write one, then remove what is neither among the newest nor the best step's."""
        path = self.path(step)
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({"tag": self.tag, **content}, file)  # a path would hide why a write failed
        ours = [p for p in self.paths() if p <= path]  # later ones are another tag's
        for old in ours[self.keep :]:
            if old != self.path(best):
                old.unlink()

    def read(self, path: Path) -> Mapping[str, Any] | None:
        """What a checkpoint holds; None if it is damaged or another recipe's, which is said."""
        try:
            saved: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            tag = saved["tag"]
        except DAMAGED:
            self.say_damaged(path)
            return None
        if tag != self.tag:
            say(f"{path.name} is from another recipe and is not used.")
            return None
        return saved

    def say_damaged(self, path: Path) -> None:
        """Tell that a checkpoint is passed over."""
        say(f"Checkpoint {path} is damaged and is not used; going back to the one before.")
