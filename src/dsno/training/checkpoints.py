"""Checkpoints of a training run: the newest few and the best, each whole or not there.

Beside each lies its checksum: torch reads a file with flipped bits without complaint.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsno.support.console import alert, say
from dsno.support.errors import WorkError
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
        return sorted(self.folder.glob("step-*.pt"), key=_step_of, reverse=True)

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

    def move_newest(self, folder: Path) -> None:
        """Move the newest checkpoint to a folder, in place of those there; do nothing without one.

        Stopped at any instant, it is whole here or there.

        Raises:
            WorkError: if it cannot be moved.
        """
        paths = self.paths()
        if not paths:
            return
        newest = paths[0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = [path for path in folder.iterdir() if path.stem != newest.stem]
            shutil.copyfile(_checksum_of(newest), _checksum_of(folder / newest.name))
            newest.replace(folder / newest.name)
            for old in (_checksum_of(newest), *others):
                old.unlink()
        except OSError as error:
            raise WorkError(
                f"{newest} cannot be moved to {folder} ({error.strerror}); correct this and run "
                "again."
            ) from error

    def read(self, path: Path) -> Mapping[str, Any] | None:
        """What a checkpoint holds; None if it is damaged or another recipe's, and that is said."""
        return self._load(path, says=True)

    def holds(self, path: Path) -> bool:
        """Whether a checkpoint is whole and of this tag."""
        return self._load(path, says=False) is not None

    def _load(self, path: Path, *, says: bool) -> Mapping[str, Any] | None:
        try:
            if not _checksum_of(path).is_file():
                raise FileNotFoundError
            with _checksum_of(path).open(encoding="utf-8") as file:
                if file.read(65) != sha256(path):
                    raise ValueError
            saved: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            tag = saved["tag"]
        except Exception:  # whatever a damaged file makes torch raise
            if says:
                self.say_damaged(path)
            return None
        if tag != self.tag:
            if says:
                say(f"{path.name} is from another recipe and is not used.")
            return None
        return saved

    def say_damaged(self, path: Path) -> None:
        """Say that a checkpoint is not used."""
        alert(
            f"Checkpoint {path} is damaged and is not used; going on from an older one or from the "
            "start."
        )


def newest_first(where: Sequence[Checkpoints]) -> list[tuple[Checkpoints, Path]]:
    """The checkpoints of several folders, newest first; of the same step, the first folder's."""
    found = [(checkpoints, path) for checkpoints in where for path in checkpoints.paths()]
    return sorted(found, key=lambda pair: _step_of(pair[1]), reverse=True)


def newest(where: Sequence[Checkpoints]) -> tuple[Checkpoints, int] | None:
    """The newest whole checkpoint: where it is, and its step; None if there is none."""
    for checkpoints, path in newest_first(where):
        if checkpoints.holds(path):
            return checkpoints, _step_of(path)
    return None


def _step_of(path: Path) -> int:
    """The step that a checkpoint's name says; -1 for another name."""
    text = path.stem.removeprefix("step-")
    return int(text) if text.isdecimal() else -1


def _checksum_of(path: Path) -> Path:
    return path.with_suffix(".sha256")
