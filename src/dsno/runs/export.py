"""A student together with its teacher, from the folder of a run."""

from __future__ import annotations

from pathlib import Path

from dsno.cards.about import About
from dsno.cards.facts import known_of
from dsno.cards.write import local_source, write_card
from dsno.graphs.export import export_graph
from dsno.pipeline import DSNOPipeline, DSNOTeacher
from dsno.runs.build import guided
from dsno.runs.locate import MODELS, saved_recipe
from dsno.sampling.dial import NO_TEACHER
from dsno.sampling.folder import CARD
from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError
from dsno.support.files import filling
from dsno.teachers.store import DESCRIPTION, load_teacher


def load_model(folder: Path) -> DSNOPipeline:
    """A model, with its teacher if there is one: its folder's, or that of the run it is from.

    Args:
        folder: of the model.

    Raises:
        InputError: if a folder is damaged.
    """
    pipeline = DSNOPipeline.from_pretrained(folder)
    run = folder.absolute().parent
    needed = run / "recipe.yaml", run / "teacher" / DESCRIPTION
    is_of_run = folder.name in MODELS and all(path.is_file() for path in needed)
    if pipeline.teacher is None and is_of_run:
        denoiser = guided(saved_recipe(run), load_teacher(run / "teacher"))
        pipeline.register_modules(teacher=DSNOTeacher.from_denoiser(denoiser))
    return pipeline


def load_with_teacher(folder: Path) -> DSNOPipeline:
    """As `load_model`.

    Raises:
        InputError: if there is no teacher, or a folder is damaged.
    """
    pipeline = load_model(folder)
    if pipeline.teacher is None:
        raise InputError(NO_TEACHER)
    return pipeline


def export_graph_of(model: Path, file: Path, *, to: str, trajectory: bool = False) -> str:
    """Write one evaluation of a model as a graph; return what was done.

    Args:
        model: folder of the model.
        file: to write.
        to: name of the format.
        trajectory: give the states at all trained times instead of the sample.

    Raises:
        InputError, WorkError: as `export_graph`, or if the folder is damaged.
    """
    pipeline = DSNOPipeline.from_pretrained(model, teacher=None)
    return export_graph(pipeline, file, to=to, trajectory=trajectory)


def export_model(model: Path, folder: Path, *, license: str | None = None) -> str:
    """Write a model with its teacher and its card to a new folder; return what was done.

    Args:
        model: folder of the model.
        folder: new or empty.
        license: of the weights, for the card.

    Raises:
        InputError: as `load_with_teacher`, or if the folder holds something else.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; give a new one to --out.")
    pipeline = load_with_teacher(model)
    known = known_of(pipeline.model)
    with filling(folder) as temporary, quiet_libraries():
        pipeline.save_pretrained(temporary, card=False)
        source = local_source(folder)
        write_card(temporary, About.of(pipeline), known, source=source, license=license)
    card = f"its card ({CARD}) with what was measured"
    if known.facts.metrics is None:
        card = f"a card ({CARD}) without measurements, as `dsno evaluate` has none of these weights"
    return f"Wrote the model, its teacher and {card} to {folder}."
