"""The report's page: sentences and numbers of metrics.json set in the HTML template."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

import yaml
from jinja2 import Environment, StrictUndefined

from dsno.data.credits import CREDITS
from dsno.evaluation.features import singular
from dsno.evaluation.metrics import Metrics
from dsno.evaluation.samplers import SAMPLER_NAMES
from dsno.evaluation.table import MEASURES
from dsno.evaluation.wording import (
    deciding,
    duration,
    in_evaluations,
    interval,
    number,
    ordered,
    share,
    symbol,
    verdict,
)

TEMPLATE = "template.html.j2"


def render(metrics: Metrics, uris: Mapping[str, str]) -> str:
    """The page, with the figures' `uris` by name."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "duration": duration}
    environment.filters |= {"evaluations": in_evaluations, "singular": singular}
    environment.filters |= {"interval": interval, "share": share, "symbol": symbol}
    environment.filters |= {"measured": lambda x: share(x) if isinstance(x, float) else interval(x)}
    text = (resources.files("dsno.evaluation") / TEMPLATE).read_text(encoding="utf-8")
    sentence, remarks = verdict(metrics)
    data = metrics.recipe.get("data") or {}
    return environment.from_string(text).render(
        m=metrics,
        sentence=sentence,
        remarks=remarks,
        rows=ordered(metrics),
        names=metrics.feature_names(),
        labels=SAMPLER_NAMES,
        measures={
            name: title
            for name, title in MEASURES.items()
            if any(getattr(row, name) for row in metrics.samplers)
        },
        uris=uris,
        credit=CREDITS.get(data.get("source", "")),
        deciding=deciding(metrics),
        recipe=yaml.safe_dump(metrics.recipe, sort_keys=False, allow_unicode=True),
    )
