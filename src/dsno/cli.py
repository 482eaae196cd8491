"""The command line: parse, call, print."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from dsno import __version__
from dsno.support.console import is_silent
from dsno.support.errors import DsnoError, InputError, one_of

if TYPE_CHECKING:
    from dsno.recipes import Recipe
    from dsno.runs.run import Run

INTERRUPTED = 130

# Each command imports what it needs when it runs: torch and diffusers cost seconds.

app = typer.Typer(
    name="dsno",
    help="Turn a diffusion model into a one-step generator with a neural operator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe (`dsno recipes`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as teacher.steps=40."),
]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="A recipe, or a folder with a trained model.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/NAME by default.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Set finished results aside without asking where the recipe changed."
    ),
]
Extend = Annotated[
    bool,
    typer.Option(
        "--extend", help="Where `steps` has grown, go on from the last step instead of anew."
    ),
]


def _resolve(recipe: str, overrides: list[str] | None, dry_run: bool) -> Recipe:
    from dsno.recipes import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    if dry_run:
        _print_yaml(resolved.model_dump(mode="json"))
        raise typer.Exit
    return resolved


def _print_yaml(values: dict[str, Any]) -> None:
    import yaml

    typer.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


def _open(
    recipe: str,
    overrides: list[str] | None,
    out: Path | None,
    dry_run: bool = False,
    *,
    yes: bool = False,
    extend: bool = False,
) -> Run:
    resolved = _resolve(recipe, overrides, dry_run)
    from dsno.runs.run import Run

    return Run(
        resolved,
        out or Path("runs") / resolved.name,
        command=_command(),
        yes=yes,
        extend=extend,
    )


def _command() -> str:
    return shlex.join(["dsno", *sys.argv[1:]])


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    extend: Extend = False,
) -> None:
    """Run every stage: teacher, collect, train, finish, evaluate, report; not what is done."""
    opened = _open(recipe, overrides, out, dry_run, yes=yes, extend=extend)
    opened.run()
    if not is_silent():
        _print_table(opened)
        typer.echo(f"\nReport: {opened.folder / 'report' / 'report.html'}")


@app.command()
def teacher(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    extend: Extend = False,
) -> None:
    """Train the teacher, a diffusion model."""
    _open(recipe, overrides, out, dry_run, yes=yes, extend=extend).stage("teacher")


@app.command()
def collect(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    shard_range: Annotated[
        str,
        typer.Option(
            metavar="A:B", help="Make shards A to B - 1 only; other jobs may make the others."
        ),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved recipe and an estimate of what it takes, and stop.",
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Solve the teacher's ODE for many noises and store the trajectories."""
    shards = parse_range(shard_range) if shard_range else None
    if dry_run:
        from dsno.recipes import load_recipe
        from dsno.runs.estimate import estimate_collection, estimate_lines

        resolved = load_recipe(recipe, overrides or [])
        _print_yaml(resolved.model_dump(mode="json"))
        found = estimate_collection(resolved, out or Path("runs") / resolved.name)
        typer.echo("\n".join(estimate_lines(found)))
        return
    _open(recipe, overrides, out, yes=yes).stage("collect", shards=shards)


trajectories = typer.Typer(
    no_args_is_help=True, help="Inspect collected trajectories, and check that they are complete."
)
app.add_typer(trajectories, name="trajectories")
Where = Annotated[
    str,
    typer.Argument(metavar="DIR", help="Folder or URL of trajectories, or the folder of a run."),
]


@trajectories.command("info")
def trajectories_info(where: Where) -> None:
    """Print what a folder of trajectories contains."""
    from dsno.runs.locate import trajectories_of
    from dsno.trajectories.verify import describe

    for key, value in describe(trajectories_of(where, _command())[0]).items():
        typer.echo(f"{key:<13} {value}")


@trajectories.command("verify")
def trajectories_verify(
    where: Where,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Move foreign files aside and make damaged shards again."),
    ] = False,
) -> None:
    """Read every shard and name all that are missing, truncated, edited or foreign."""
    from dsno.runs.locate import trajectories_of
    from dsno.trajectories.verify import ASIDE, inspect_trajectories, repair_trajectories, spans

    storage, run = trajectories_of(where, _command())
    manifest, findings = inspect_trajectories(storage)
    for finding in findings:
        typer.echo(f"{storage.at(finding.file)} {finding.says}.")
    typer.echo(
        f"{len(manifest.shards):,} of {manifest.shard_count:,} shards are made; "
        f"{len(findings):,} findings."
    )
    if manifest.missing:
        typer.echo(f"Not made yet: shards {spans(manifest.missing)}.")
    if not findings and not manifest.missing:
        return
    again = f"`dsno collect RECIPE collect.destination={storage}`"
    if not repair:
        remedy = again if run is None else f"`dsno trajectories verify {where} --repair`"
        typer.echo(f"{remedy} makes what is missing or damaged again.")
        raise typer.Exit(1)
    if run is None:
        raise InputError(
            f"{where} is not in the folder of a run, so its recipe is unknown; run {again}, which "
            "makes what is missing or damaged again."
        )
    for name in repair_trajectories(storage, findings):
        typer.echo(f"Moved {name} to {storage.at(ASIDE)}.")
    run.stage("collect")


def parse_range(text: str) -> range:
    """`0:128` as a range.

    Raises:
        InputError: if it is anything else.
    """
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise InputError(f"Expected --shard-range A:B with A < B, such as 0:128; found {text!r}.")
    return range(int(first), int(end))


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    extend: Extend = False,
) -> None:
    """Train the operator on the trajectories."""
    _open(recipe, overrides, out, dry_run, yes=yes, extend=extend).stage("train")


@app.command()
def finish(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Match the distribution of the student's samples to the teacher's, without data."""
    _open(recipe, overrides, out, dry_run, yes=yes).stage("finish")


@app.command()
def report(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Evaluate if that is not done, and write the report."""
    opened = _open(recipe, overrides, out, dry_run, yes=yes)
    opened.stage("evaluate")
    opened.stage("report")


@app.command()
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
            help="Without a recipe, what to compare with: digits (default), folder, huggingface "
            "or npz; short for data.source=."
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
        int | None, typer.Option(help="For a trained model: sample i depends on it and i alone.")
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
        opened = _open(target, overrides, out, dry_run, yes=yes)
        opened.stage("evaluate", full=full)
        if not is_silent():
            _print_table(opened)
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
    from dsno.runs.evaluate import FITTING, Request, evaluate_target, sections, taken

    chosen, spec = sections(short, overrides)
    if reference is not None and chosen.model_dump(exclude_defaults=True).keys() - FITTING:
        raise InputError(
            "--reference stands for data, so leave out --data, --path and data.KEY (but data.size "
            "and data.channels, which images are fitted to)."
        )
    if reference is not None and save_statistics is not None:
        raise InputError("--reference is a file of statistics already; leave out one of the two.")
    if dry_run:
        _print_yaml({"data": chosen.model_dump(mode="json"), "evaluate": taken(spec)})
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
    result = evaluate_target(found, request)
    if not is_silent():
        typer.echo(json.dumps(result, indent=1))


def _print_table(run: Run) -> None:
    from dsno.evaluation.table import table

    typer.echo(table(run.metrics()))


@app.command()
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
    seed: Annotated[int, typer.Option(help="Sample i depends on the seed and i alone.")] = 0,
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
) -> None:
    """Make samples with one network evaluation each, or a few (--steps)."""
    from dsno.recipes.choices import Arithmetic
    from dsno.runs.locate import model_folder, model_of

    chosen = one_of(precision, get_args(Arithmetic), "precision")
    folder = model_folder(target)
    if folder is None:
        opened = _open(target, overrides, out)
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

    for path in sample_model(
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
    ):
        typer.echo(f"Wrote {num:,} samples to {path}")


@app.command()
def export(
    target: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run, or its student's folder.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = ...,  # type: ignore[assignment]
) -> None:
    """Write a run's student together with its teacher, for more than one step (--steps)."""
    from dsno.runs.locate import model_folder

    folder = model_folder(target)
    if folder is None:
        raise InputError(f"There is no folder {target}; give the folder of a run.")
    from dsno.runs.export import export_model

    typer.echo(export_model(folder, out))


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A diffusers folder or Hub id, an exported EDM network, a progressive-"
            "distillation checkpoint, your own adapter (.py), or the authors' trajectories (LMDB).",
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

    typer.echo(import_source(source, out, options or []))


@app.command()
def recipes() -> None:
    """List the recipes that ship."""
    from dsno.recipes import load_recipe, shipped_recipes

    for name in shipped_recipes():
        typer.echo(f"{name:<20} {load_recipe(name).title}")


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Print versions, machine and settings, for a bug report."""
    from dsno.support.installation import installation

    found = installation()
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        typer.echo(f"{key:<{width}}  {value}")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dsno {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapter", help="A Python file that makes your own network class known; it is run."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    for path in adapter or []:
        from dsno.teachers.own import load_adapter

        load_adapter(path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 (the work failed), 2 (the input is wrong) or 130."""
    try:
        app(args=arguments, prog_name="dsno")
    except SystemExit as stop:  # how Typer ends, well or not
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code == INTERRUPTED and not is_silent():
            typer.echo("dsno: interrupted; the same command goes on from here.", err=True)
        return code
    except DsnoError as error:
        if not (is_silent() and error.is_shared):  # process 0 says it for all
            who = f"dsno (process {os.environ['RANK']})" if is_silent() else "dsno"
            typer.echo(f"{who}: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
