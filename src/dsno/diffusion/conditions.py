"""What conditions sample i: a pure function of (seed, i), drawn compactly and expanded for use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.support import seeds

Condition = Mapping[str, Tensor]
"""Named conditioning tensors, each with a leading batch dimension."""

CLASS_LABELS = "class_labels"
"""Name of the class labels (B,) among the conditions."""
PROMPT = "prompt_index"
"""Name of the index (B,) into a run's prompts, which is stored instead of their embeddings."""
EMBEDDINGS = "encoder_hidden_states"
"""Name of the prompts' embeddings (B, L, D)."""
GUIDANCE_SCALE = "guidance_scale"
"""Name of the guidance scale (B,)."""


@dataclass(frozen=True)
class Conditions:
    """How conditions are drawn.

    Attributes:
        label_frequencies: share of each class; None for no labels.
        guidance: the range guidance scales are drawn from, evenly; None if the scale is no input.
        prompts: embeddings (P, L, D) to draw from, evenly; None for no text.
    """

    label_frequencies: Sequence[float] | None = None
    guidance: tuple[float, float] | None = None
    prompts: Tensor | None = None

    def draw(self, seed: int, items: Sequence[int], *, sampling: bool = False) -> dict[str, Tensor]:
        """Conditions of some items as they are stored: labels, scales, indices of prompts.

        Args:
            seed: of the run.
            items: which samples.
            sampling: draw those of samples made for evaluation, not those of trajectories.
        """
        labels, scales, prompts = (
            (seeds.SAMPLE_LABEL, seeds.SAMPLE_GUIDANCE, seeds.SAMPLE_PROMPT)
            if sampling
            else (seeds.LABEL, seeds.GUIDANCE, seeds.PROMPT)
        )
        drawn: dict[str, Tensor] = {}
        if self.label_frequencies is not None:
            drawn[CLASS_LABELS] = seeds.item_labels(
                seed, items, self.label_frequencies, stream=labels
            )
        if self.guidance is not None:
            low, high = self.guidance
            units = [seeds.generator(seed, scales, i).random() for i in items]
            drawn[GUIDANCE_SCALE] = torch.tensor([low + (high - low) * u for u in units])
        if self.prompts is not None:
            even = [1.0] * len(self.prompts)
            drawn[PROMPT] = seeds.item_labels(seed, items, even, stream=prompts).to(torch.int32)
        return drawn

    def expand(self, drawn: dict[str, Tensor]) -> Condition | None:
        """What the denoiser is given: prompts' embeddings instead of indices, float32."""
        given = dict(drawn)
        if PROMPT in given and self.prompts is not None:
            given[EMBEDDINGS] = self.prompts[given.pop(PROMPT).long()]
        return {k: v.float() if v.is_floating_point() else v for k, v in given.items()} or None


UNCONDITIONAL = Conditions()
