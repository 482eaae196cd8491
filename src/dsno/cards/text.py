"""README.md of a model: what it is, how to use it, how it was made and how good it is."""

from __future__ import annotations

import yaml

from dsno.cards.about import About
from dsno.cards.facts import MARK, Facts, Known
from dsno.cards.making import making
from dsno.cards.markdown import fenced, folded, listed, named, plain
from dsno.cards.measures import measured, seconds
from dsno.cards.metadata import metadata
from dsno.evaluation.metrics import Metrics
from dsno.evaluation.samplers import SAMPLER_NAMES
from dsno.recipes import Recipe
from dsno.sampling.folder import PICTURE

DSNO = "https://arxiv.org/abs/2211.13449"
CITATION = """
@inproceedings{zheng2023fast,
  title     = {Fast Sampling of Diffusion Models via Operator Learning},
  author    = {Zheng, Hongkai and Nie, Weili and Vahdat, Arash and Azizzadenesheli, Kamyar
               and Anandkumar, Anima},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2023}
}
"""
FINISH_CITATION = """
@inproceedings{yin2024onestep,
  title     = {One-step Diffusion with Distribution Matching Distillation},
  author    = {Yin, Tianwei and Gharbi, Micha{\\"e}l and Zhang, Richard and Shechtman, Eli
               and Durand, Fr{\\'e}do and Freeman, William T. and Park, Taesung},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024}
}
"""


def text(about: About, known: Known, source: str) -> str:
    """The whole file.

    Args:
        about: the model.
        known: what is known of it.
        source: what to load it by: a Hub id, or the name of its folder.
    """
    facts, metrics = known.facts, known.facts.metrics
    name = source.rsplit("/", 1)[-1]
    title = plain((metrics.title or metrics.name) if metrics else name)
    parts = [f"---\n{metadata(about, facts, name)}\n---", MARK, f"# {title}: a one-step generator"]
    parts.append(_introduction(about, facts))
    if known.picture is not None and metrics is not None:
        parts.append(f"![Samples of the teacher and of this model]({PICTURE})")
        parts.append(_caption(metrics))
    parts += ["## How to use it", "With the Python package `dsno`:"]
    parts += [fenced(about.code(source), "python"), listed(about.options())]
    rows = about.rows(None if metrics is None else metrics.sampling_cost)
    if metrics is not None:
        rows.insert(2, ("Time of a sample", seconds(metrics, facts.row)))
    parts += ["## What it is", named(rows)]
    if metrics is not None:
        parts += ["## How it was made", named(making(metrics, is_finished=_is_finished(facts)))]
        parts.append(_recipe(metrics))
    parts.append("## How good it is")
    parts.append(
        "No measurement of these weights is known."
        if metrics is None
        else measured(metrics, facts.row)
    )
    parts += ["## What to keep in mind", listed(_limits(facts))]
    parts += ["## Licence", _licence(facts)]
    parts += ["## Citation", fenced(CITATION, "bibtex")]
    if _is_finished(facts):
        parts.append(fenced(FINISH_CITATION, "bibtex"))
    return "\n\n".join(parts) + "\n"


def _is_finished(facts: Facts) -> bool:
    return facts.metrics is not None and facts.metrics.finish is not None


def _introduction(about: About, facts: Facts) -> str:
    lines = [
        f"A one-step generator of {about.what}. It was distilled from a diffusion model, its "
        f"teacher, as a neural operator ([DSNO]({DSNO})) that maps the noise to the whole "
        "trajectory of the teacher's probability-flow ODE, down to the sample, in **one** network "
        "evaluation."
    ]
    if _is_finished(facts):
        lines.append(
            "After that it was finished by distribution matching "
            "([DMD](https://arxiv.org/abs/2311.18828)), without data."
        )
    return " ".join(lines)


def _caption(metrics: Metrics) -> str:
    """What the picture shows."""
    solution = metrics.paired_reference
    how = ""
    if solution is not None:
        solver = plain(SAMPLER_NAMES.get(solution.method, solution.method))
        how = f" ({solver}, {solution.steps:,} steps)"
    return (
        f"Rows in pairs, from the same noises: above, the teacher solved accurately{how}; below, "
        "this model with one evaluation. They are the first, not a selection."
    )


def _recipe(metrics: Metrics) -> str:
    values = {"name": metrics.name, **_differing(metrics.recipe)}
    recipe = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    summary = "The recipe: what decides the result and is not at its default"
    return folded(summary, fenced(recipe, "yaml"))


def _differing(values: dict[str, object]) -> dict[str, object]:
    """Those of a recipe's values that are not at their defaults; all if it is another version's."""
    try:
        recipe = Recipe.model_validate({"name": "any", **values})
    except ValueError:
        return values
    found: dict[str, object] = recipe.model_dump(mode="json", exclude_defaults=True)
    if isinstance(data := found.get("data"), dict) and recipe.data is not None:
        found["data"] = {"source": recipe.data.source, **data}
    return {name: value for name, value in found.items() if name not in ("name", "evaluate")}


def _limits(facts: Facts) -> list[str]:
    metrics = facts.metrics
    found = [
        "It makes what its teacher makes, with the biases of the data that the teacher was trained "
        "on, and nothing filters its samples."
    ]
    if metrics is not None:
        found += [plain(warning.sentence) for warning in metrics.warnings]
        found.append(
            "The numbers are those of one run: their intervals are over samples of the same "
            "weights, not over trainings with other seeds."
        )
        if facts.rounded is not None:
            found.append(
                f"The numbers are those of the weights before they were rounded to {facts.rounded}."
            )
    return found


def _licence(facts: Facts) -> str:
    maker = "The package `dsno`, which made it, is under Apache-2.0."
    if facts.license:
        return f"{plain(facts.license)}. {maker}"
    return (
        "None was given to these weights; the terms of the teacher and of the data apply to what "
        f"was made from them. {maker}"
    )
