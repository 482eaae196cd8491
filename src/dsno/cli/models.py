"""Commands of a model: sample it, export it, import a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from dsno.cli.options import Overrides, Target
from dsno.cli.work import note, open_run, print_json
from dsno.support.errors import InputError, one_of


def sample(
    target: Target,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With a model folder: a .png file (a grid), an .npz file, or a folder, which gets "
            "one .png a sample. With a recipe: the run's folder."
        ),
    ] = None,
    num: Annotated[int, typer.Option(help="How many samples.")] = 64,
    seed: Annotated[
        int, typer.Option(help="Sample i depends on the seed and i alone.", min=0, max=2**63 - 1)
    ] = 0,
    label: Annotated[
        list[int] | None, typer.Option(help="Class of the samples; repeat for several in turn.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text of the samples; repeat for several in turn.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="For a model trained at a range of guidance scales.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at a time.")] = 256,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Write what the network gives to the .npz, floats before any decoding."
        ),
    ] = False,
    steps: Annotated[
        int,
        typer.Option(
            help="1: one evaluation of the student. More: the teacher's solver goes on from its "
            "trajectory. Needs the teacher: a run, or what `dsno export` wrote."
        ),
    ] = 1,
    precision: Annotated[
        str,
        typer.Option(
            metavar="exact|tf32|bf16",
            help="Arithmetic of the networks: full float32; what a GPU's tensor cores make of "
            "float32; bfloat16.",
        ),
    ] = "exact",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the networks (torch.compile).")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the files written as JSON.")
    ] = False,
) -> None:
    """Make samples with one network evaluation each, or a few (--steps)."""
    from dsno.recipes.choices import Arithmetic
    from dsno.runs.locate import model_folder, model_of

    chosen = one_of(precision, get_args(Arithmetic), "precision")
    folder = model_folder(target)
    if folder is None:
        opened = open_run(target, overrides, out)
        opened.require("train" if opened.recipe.finish is None else "finish")
        folder = opened.folder / model_of(opened.recipe)
        names = ["samples.npz"] if raw else ["samples.png", "samples.npz"]
        files = [opened.folder / "samples" / name for name in names]
    else:
        if overrides:
            raise InputError(
                "Sampling a trained model takes no KEY=VALUE; give its recipe instead."
            )
        files = [out or Path("samples.npz" if raw else "samples.png")]
    from dsno.runs.sample import sample_model

    written = sample_model(
        folder,
        files,
        num=num,
        seed=seed,
        labels=label,
        prompts=prompt,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        raw=raw,
        steps=steps,
        precision=chosen,
        compiled=compiled,
    )
    if as_json:
        print_json({"files": [str(path) for path in written], "samples": num})
        return
    for path in written:
        note(f"Wrote {num:,} samples to {path}")


def export(
    target: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run, or its student's folder.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; with --to, file.")] = ...,  # type: ignore[assignment]
    license: Annotated[
        str | None,
        typer.Option(
            help="Of the weights, for the model's card, by the Hub's names, such as cc-by-4.0."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="onnx|torch-export",
            help="Write one evaluation as a graph that runs without this package.",
        ),
    ] = None,
    trajectory: Annotated[
        bool,
        typer.Option("--trajectory", help="With --to: a graph of the states at all trained times."),
    ] = False,
) -> None:
    """Write a run's student with its teacher, for more than one step, and a card for the Hub.

    Or, with --to, the student's one evaluation as a graph for other programs.
    """
    if to is None and trajectory:
        raise InputError("--trajectory is of a graph: give --to onnx or --to torch-export too.")
    if to is not None and license is not None:
        raise InputError("--license is of a card, which a graph does not have: leave out one.")
    from dsno.runs.locate import model_folder

    folder = model_folder(target)
    if folder is None:
        raise InputError(f"There is no folder {target}; give the folder of a run.")
    from dsno.runs.export import export_graph_of, export_model

    if to is not None:
        note(export_graph_of(folder, out, to=to, trajectory=trajectory))
        return
    note(export_model(folder, out, license=license))


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A diffusers folder or Hub id, an exported EDM network, a progressive-"
            "distillation checkpoint, your own adapter (.py), the authors' trajectories (LMDB), or "
            "exported ones (a folder or URL).",
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="What the source does not say: keys of the recipe's `teacher` section (for "
            "trajectories `collect`), such as null_class=1000.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = ...,  # type: ignore[assignment]
) -> None:
    """Convert a teacher, or trajectories, made elsewhere to a folder of this package's format."""
    from dsno.runs.imports import import_source

    note(import_source(source, out, options or []))
