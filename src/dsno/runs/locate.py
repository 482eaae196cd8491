"""What a path on the command line names: a trained model, or trajectories and their run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsno.support.errors import InputError
from dsno.support.storage import StorageDir

if TYPE_CHECKING:
    from dsno.recipes import Recipe
    from dsno.runs.run import Run


STUDENT, FINISHED = "student", "finished"
MODELS = (STUDENT, FINISHED)
"""Where the trained models of a run are, in its folder."""


def model_of(recipe: Recipe) -> str:
    """Which of `MODELS` is the outcome of a recipe's run."""
    return STUDENT if recipe.finish is None else FINISHED


def model_folder(target: str) -> Path | None:
    """The model folder that `target` names: itself, or the outcome of the run in it.

    Returns:
        None if `target` can only be a recipe.

    Raises:
        InputError: if it is a folder without a trained model, or a path where nothing is.
    """
    for folder in (Path(target), *(Path(target) / name for name in _models_in(Path(target)))):
        if (folder / "model_index.json").is_file():
            return folder
    if Path(target).is_dir():
        raise InputError(f"{target} holds no trained model; run `dsno run` or `dsno train` first.")
    if "/" in target and not target.endswith((".yaml", ".yml")):
        raise InputError(f"There is no folder {target}; give a trained model's folder or a recipe.")
    return None


def _models_in(folder: Path) -> tuple[str, ...]:
    """The models that a run's folder may have, the last one made first."""
    if (folder / "recipe.yaml").is_file():
        from dsno.runs.run import saved_recipe  # seconds

        if saved_recipe(folder).finish is None:
            return (STUDENT,)
    return FINISHED, STUDENT


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
