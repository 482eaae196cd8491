"""The inception score: how sure a classifier is of each sample, and how varied its answers are."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dsno.evaluation.estimate import Estimate, of_parts
from dsno.support.errors import InputError

SPLITS = 10
"""Parts of the samples that are scored apart, as in the source's code."""


def inception_score(logits: Float[Tensor, "n classes"]) -> Estimate:
    """exp(mean of KL(p(y | x) || p(y))), the mean over ten parts of the samples; float64.

    Between 1 and the number of classes. Its standard error is that of the mean over the parts (the
    field often prints their standard deviation, sqrt(10) times as much).

    Source: Salimans et al., arXiv 1606.03498, section 4.

    Raises:
        InputError: for fewer samples than parts.
    """
    if len(logits) < SPLITS:
        raise InputError(
            f"An inception score needs at least {SPLITS} samples, one for each part, not "
            f"{len(logits)}."
        )
    parts = torch.tensor_split(logits.double().log_softmax(1), SPLITS)
    return of_parts([_score(log_p) for log_p in parts])


def _score(log_p: Tensor) -> float:
    log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
    return float((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())
