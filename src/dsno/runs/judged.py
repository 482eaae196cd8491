"""What `dsno evaluate TARGET` judges: a trained model, images, or their statistics."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsno.runs.locate import model_folder
from dsno.support.errors import InputError
from dsno.support.hub import looks_like_hub_id


@dataclass(frozen=True)
class Judged:
    """What is judged.

    Attributes:
        kind: of it.
        path: where it is.
        shown: what the user called it.
    """

    kind: Literal["model", "folder", "npz", "statistics"]
    path: Path
    shown: str


def judged(target: str) -> Judged | None:
    """What `target` names: a model's folder or Hub id, a run, images, or an .npz file.

    Returns:
        None if it can only be a recipe.

    Raises:
        InputError: if there is no such thing.
    """
    path = Path(target).expanduser()
    if path.suffix == ".npz":
        if not path.is_file():
            raise InputError(f"There is no file {target}; give an .npz file of images.")
        return Judged("statistics" if holds_statistics(path) else "npz", path, target)
    if path.suffix.lower() == ".zip" or _is_folder_of_images(path):
        return Judged("folder", path, target)
    if looks_like_hub_id(target) and not path.exists() and path.suffix not in (".yaml", ".yml"):
        from dsno.sampling.loading import local_folder  # seconds

        return Judged("model", local_folder(target, {}), target)
    folder = model_folder(target)
    return None if folder is None else Judged("model", folder, target)


def _is_folder_of_images(path: Path) -> bool:
    """Whether a folder is neither a model nor a run, and so can only be images."""
    if not path.is_dir():
        return False
    known = ("model_index.json", "student", "recipe.yaml")
    return not any((path / name).exists() for name in known) and any(path.iterdir())


def holds_statistics(path: Path) -> bool:
    """Whether an npz file has the arrays `mu` and `sigma`; False for what is no npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
