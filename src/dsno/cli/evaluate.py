"""`dsno evaluate`: of a run, or of a model or images alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsno.cli.options import DryRun, Out, Overrides, Yes
from dsno.cli.work import open_run, print_json, print_sections, print_table
from dsno.support.errors import InputError


def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]",
            help="A recipe; or a trained model's folder or Hub id, a run, a folder or .zip file of "
            "images, an .npz file of images or statistics. Nothing, with --save-statistics.",
        ),
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="With a recipe: measure `evaluate.more_curves` besides."),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Without a recipe, what to compare with: digits (default), emoji, folder, "
            "huggingface or npz; short for data.source=."
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(help="Without a recipe, where those data are; short for data.path=."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Without a recipe, compare with the statistics in this .npz file (mu and sigma, "
            "as EDM and pytorch-fid write them) instead of data."
        ),
    ] = None,
    save_statistics: Annotated[
        Path | None,
        typer.Option(
            "--save-statistics",
            help="Without a recipe, write the statistics of what is compared with to this .npz "
            "file.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Without a recipe, how many to make, or of images how many to take; short for "
            "evaluate.samples=."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="For a trained model: sample i depends on it and i alone.", min=0, max=2**63 - 1
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="exact|tf32|bf16",
            help="For a trained model, arithmetic of its network; short for evaluate.precision=.",
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="For a trained model: compile its network; evaluate.compile=true."
        ),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print metrics, or with --dry-run the recipe, as JSON; without a recipe metrics "
            "always are.",
        ),
    ] = False,
) -> None:
    """Measure a run's samplers, or a model or images alone, against real data or statistics.

    Without a recipe the keys of `data` say what to compare with, such as data.split=test, and
    evaluate.features=[inception] in which features. Images are converted to the channels and size
    of what is judged.
    """
    from dsno.runs.judged import judged

    overrides = list(overrides or [])
    if target is not None and "=" in target and not Path(target).exists():
        overrides, target = [target, *overrides], None
    found = None if target is None else judged(target)
    short = {
        "data.source": data,
        "data.path": path,
        "evaluate.samples": samples,
        "evaluate.precision": precision,
        "evaluate.compile": compiled or None,
    }
    alone = {
        "--seed": seed,
        "--reference": reference,
        "--save-statistics": save_statistics,
        **short,
    }
    if target is not None and found is None:
        if any(value is not None for value in alone.values()):
            raise InputError(
                "--data, --path, --reference, --save-statistics, --samples, --seed, --precision "
                "and --compile go with a trained model or images; a recipe takes KEY=VALUE, such "
                "as evaluate.samples=1000."
            )
        opened = open_run(target, overrides, out, dry_run, yes=yes, as_json=as_json)
        opened.stage("evaluate", full=full)
        if as_json:
            print_json(opened.metrics())
        else:
            print_table(opened)
        return
    if out is not None or yes or full:
        raise InputError(
            "--out, --yes and --full go with a recipe; what is measured of a trained model or of "
            "images is printed."
        )
    if target is None and save_statistics is None:
        raise InputError(
            "There is nothing to evaluate: name a recipe, a model or images, or give "
            "--save-statistics FILE to prepare what to compare with."
        )
    from dsno.runs.request import FITTING, Request, sections, taken

    chosen, spec = sections(short, overrides)
    if reference is not None and chosen.model_dump(exclude_defaults=True).keys() - FITTING:
        raise InputError(
            "--reference stands for data, so leave out --data, --path and data.KEY (but data.size "
            "and data.channels, which images are fitted to)."
        )
    if reference is not None and save_statistics is not None:
        raise InputError("--reference is a file of statistics already; leave out one of the two.")
    if dry_run:
        shown = {"data": chosen.model_dump(mode="json"), "evaluate": taken(spec)}
        print_sections(shown, as_json=as_json)
        return
    is_open = samples is None and not any(o.startswith("evaluate.samples=") for o in overrides)
    request = Request(
        chosen,
        spec,
        seed=seed or 0,
        statistics=reference,
        save=save_statistics,
        samples=None if is_open else spec.samples,
    )
    from dsno.runs.evaluate import evaluate_target

    result = evaluate_target(found, request)
    print_json(result)
