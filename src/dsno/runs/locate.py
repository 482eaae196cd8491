"""What a path on the command line names: a trained model, or trajectories and their run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsno.support.errors import InputError
from dsno.support.storage import StorageDir

if TYPE_CHECKING:
    from dsno.runs.run import Run


def model_folder(target: str) -> Path | None:
    """The model folder that `target` names: itself, or the student inside a run's folder.

    Returns:
        None if `target` can only be a recipe.

    Raises:
        InputError: if it is a folder without a trained model, or a path where nothing is.
    """
    for folder in (Path(target), Path(target) / "student"):
        if (folder / "model_index.json").is_file():
            return folder
    if Path(target).is_dir():
        raise InputError(f"{target} holds no trained model; run `dsno run` or `dsno train` first.")
    if "/" in target and not target.endswith((".yaml", ".yml")):
        raise InputError(f"There is no folder {target}; give a trained model's folder or a recipe.")
    return None


def trajectories_of(where: str, command: str) -> tuple[StorageDir, Run | None]:
    """The trajectories that `where` names, and the run they belong to, if that is known.

    Args:
        where: folder or URL of trajectories, or the folder of a run.
        command: what the user typed, for the run's record.

    Raises:
        InputError: if the run's recipe is damaged.
    """
    from dsno.runs.run import Run, saved_recipe  # seconds

    if "://" in where:
        return StorageDir(where), None
    for folder in (Path(where), Path(where).absolute().parent):
        if (folder / "recipe.yaml").is_file():
            run = Run(saved_recipe(folder), folder, command=command)
            local = run.trajectories.path
            if folder == Path(where) or (local and local.absolute() == Path(where).absolute()):
                return run.trajectories, run
    return StorageDir(where), None
