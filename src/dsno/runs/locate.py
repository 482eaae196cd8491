"""What a path names: a trained model, a run's recipe, trajectories and their run."""

from __future__ import annotations

from pathlib import Path

from dsno.recipes import Recipe, load_recipe
from dsno.runs.identity import tag_of
from dsno.runs.records import read_stages
from dsno.support.console import alert
from dsno.support.errors import InputError
from dsno.support.storage import StorageDir

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


def name_of(model: Path) -> str:
    """What a model's folder is called: its run, if it is one's outcome."""
    folder = model.absolute()
    return folder.parent.name if folder.name in MODELS else folder.name


def newest_run(runs: Path) -> Path:
    """The run whose model was made last.

    Args:
        runs: folder of runs.

    Raises:
        InputError: if none of them has a model.
    """
    made = {
        path.stat().st_mtime: path.parent.parent
        for name in MODELS
        for path in sorted(runs.glob(f"*/{name}/model_index.json"))
    }
    if not made:
        raise InputError(
            f"There is no trained model in {runs}/; give a model's folder, or make one by `dsno "
            "run digits`."
        )
    return made[max(made)]


def _models_in(folder: Path) -> tuple[str, ...]:
    """The models that a run's folder may have, the last one made first."""
    if not (folder / "recipe.yaml").is_file():
        return FINISHED, STUDENT
    if saved_recipe(folder).finish is None:
        return (STUDENT,)
    if _is_finished(folder):
        return (FINISHED,)
    if (folder / STUDENT / "model_index.json").is_file():
        alert(
            f"The student in {folder / STUDENT} has no finish yet, so it is used as it was trained;"
            " `dsno finish` makes it."
        )
    return (STUDENT,)


def _is_finished(folder: Path) -> bool:
    """Whether the finished student of a run is there, and made from its present student."""
    if not (folder / FINISHED / "model_index.json").is_file():
        return False
    records = read_stages(folder)
    before, record = records.get("train"), records.get("finish")
    if before is None or record is None:
        return True  # nothing is known of them
    return record["fingerprint"] == tag_of(before["fingerprint"], record["inputs"])


def trajectories_storage(recipe: Recipe, folder: Path) -> StorageDir:
    """Where the trajectories of a run are: in its folder, if the recipe names no other storage."""
    return StorageDir(recipe.collect.destination or folder / "trajectories")


def saved_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run's folder.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = folder / "recipe.yaml"
    try:
        return load_recipe(str(path))
    except InputError as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f"{path} is damaged ({reason}); restore it or give another folder."
        ) from None


def trajectories_of(where: str) -> tuple[StorageDir, Path | None]:
    """The trajectories that `where` names, and the folder of their run, if that is known.

    Args:
        where: folder or URL of trajectories, or the folder of a run.

    Raises:
        InputError: if the run's recipe is damaged.
    """
    if "://" in where:
        return StorageDir(where), None
    for folder in (Path(where), Path(where).absolute().parent):
        if (folder / "recipe.yaml").is_file():
            storage = trajectories_storage(saved_recipe(folder), folder)
            local = storage.path
            if folder == Path(where) or (local and local.absolute() == Path(where).absolute()):
                return storage, folder
    return StorageDir(where), None
