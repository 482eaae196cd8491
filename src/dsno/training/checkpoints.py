"""Checkpoints of a training run: the newest few and the best, each whole or not there.

Beside each lies its checksum: torch reads a file with flipped bits without complaint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsno.support.console import say
from dsno.support.files import replacing, sha256, write_text


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
            file.flush()
            write_text(_checksum_of(path), sha256(temporary))
        ours = [p for p in self.paths() if p <= path]  # later ones are another tag's
        for old in ours[self.keep :]:
            if old != self.path(best):
                old.unlink()
                _checksum_of(old).unlink(missing_ok=True)

    def read(self, path: Path) -> Mapping[str, Any] | None:
        """What a checkpoint holds; None if it is damaged or another recipe's, which is said."""
        try:
            if not _checksum_of(path).is_file():
                raise FileNotFoundError
            with _checksum_of(path).open(encoding="utf-8") as file:
                if file.read(65) != sha256(path):
                    raise ValueError
            saved: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            tag = saved["tag"]
        except Exception:  # whatever a damaged file makes torch raise
            self.say_damaged(path)
            return None
        if tag != self.tag:
            say(f"{path.name} is from another recipe and is not used.")
            return None
        return saved

    def say_damaged(self, path: Path) -> None:
        """Tell that a checkpoint is passed over."""
        say(f"Checkpoint {path} is damaged and is not used; going back to the one before.")


def _checksum_of(path: Path) -> Path:
    return path.with_suffix(".sha256")
