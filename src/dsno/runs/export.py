"""A student together with its teacher, from the folder of a run."""

from __future__ import annotations

from pathlib import Path

from dsno.pipeline import NO_TEACHER, DSNOPipeline, DSNOTeacher
from dsno.runs.build import guided
from dsno.runs.locate import MODELS, saved_recipe
from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError
from dsno.support.files import filling
from dsno.teachers.store import DESCRIPTION, load_teacher


def load_with_teacher(folder: Path) -> DSNOPipeline:
    """A model with its teacher: its folder's, or that of the run whose student it is.

    Args:
        folder: of the model.

    Raises:
        InputError: if there is no teacher, or a folder is damaged.
    """
    pipeline = DSNOPipeline.from_pretrained(folder)
    if pipeline.teacher is not None:
        return pipeline
    run = folder.absolute().parent
    needed = run / "recipe.yaml", run / "teacher" / DESCRIPTION
    if folder.name not in MODELS or not all(path.is_file() for path in needed):
        raise InputError(NO_TEACHER)
    denoiser = guided(saved_recipe(run), load_teacher(run / "teacher"))
    pipeline.register_modules(teacher=DSNOTeacher.from_denoiser(denoiser))
    return pipeline


def export_model(model: Path, folder: Path) -> str:
    """Write a model with its teacher to a new folder; return what was done.

    Args:
        model: folder of the model.
        folder: new or empty.

    Raises:
        InputError: as `load_with_teacher`, or if the folder holds something else.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; give a new one to --out.")
    pipeline = load_with_teacher(model)
    with filling(folder) as temporary, quiet_libraries():
        pipeline.save_pretrained(temporary)
    return f"Wrote the model and its teacher to {folder}."
