"""What the Hub reads of a card: its head in YAML.

Source of the keys: huggingface.co/docs/hub/model-cards. The library is `dsno`: for models of
`diffusers` the Hub prints a snippet that cannot load a class from elsewhere.
"""

from __future__ import annotations

from typing import Any

import yaml

from dsno.cards.about import About
from dsno.cards.facts import Facts
from dsno.evaluation.features import distance_name, singular
from dsno.support.hub import looks_like_hub_id

LIBRARY = "dsno"
PAPER = "arxiv:2211.13449"
"""As a tag, it links the model to the paper."""


def metadata(about: About, facts: Facts, name: str) -> str:
    """The YAML between the dashes.

    Args:
        about: the model.
        facts: what is known of it.
        name: of the model.
    """
    found: dict[str, Any] = {"library_name": LIBRARY}
    if facts.license:
        found["license"] = facts.license
    task = _task(about)
    if task:
        found["pipeline_tag"] = task
    tags = ["dsno", "diffusers", "diffusion", "distillation", "one-step-generation", PAPER]
    if about.classes is not None:
        tags.append("class-conditional-image-generation" if about.is_image else "class-conditional")
    found["tags"] = tags
    metrics = facts.metrics
    if metrics is not None:
        teacher, data = (metrics.recipe.get(key) or {} for key in ("teacher", "data"))
        if looks_like_hub_id(str(teacher.get("source") or "")):
            found["base_model"] = teacher["source"]
        is_public = data.get("source") == "huggingface" and looks_like_hub_id(str(data.get("path")))
        dataset = str(data["path"]) if is_public else metrics.reference.name
        if is_public:
            found["datasets"] = [dataset]
        if task:
            found["model-index"] = [_results(facts, name, task, dataset)]
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True).strip()


def _task(about: About) -> str | None:
    """The Hub's task, if it has one that fits; a class that is not asked for is drawn."""
    if not about.is_image:
        return None
    return "text-to-image" if about.is_textual else "unconditional-image-generation"


def _results(facts: Facts, name: str, task: str, dataset: str) -> dict[str, Any]:
    assert facts.metrics is not None
    metrics, row = facts.metrics, facts.metrics.of_one_step(facts.row)
    found = []
    for space in metrics.feature_names():
        kind = distance_name(space)
        found.append(
            {
                "type": kind.lower().replace(" ", "-"),
                "name": f"{kind} ({singular(space)} features, {metrics.samples:,} samples)",
                "value": row.frechet_distance[space],
            }
        )
    result = {
        "task": {"type": task},
        "dataset": {"name": metrics.reference.name, "type": dataset},
        "metrics": found,
    }
    return {"name": name, "results": [result]}
