"""Prompts in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.support.console import alert, quiet_libraries
from dsno.support.errors import InputError
from dsno.support.files import require_regular


class TextEncoder:
    """A tokenizer and a text encoder, as in diffusers' Stable Diffusion pipelines.

    Args:
        tokenizer: of `transformers`.
        encoder: of `transformers`; its first output is the embedding of every token.
    """

    def __init__(self, tokenizer: Any, encoder: nn.Module) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], *, batch_size: int = 32, device: torch.device | None = None
    ) -> Tensor:
        """Embeddings (len(prompts), L, D), float32; prompts are padded or cut to L tokens.

        Args:
            prompts: texts.
            batch_size: how many at a time.
            device: where the encoder computes, if its weights wait elsewhere.
        """
        device = device or next(self.encoder.parameters()).device
        limit, cut, parts = self.tokenizer.model_max_length, [], []
        for first in range(0, len(prompts), batch_size):
            rows = list(prompts[first : first + batch_size])
            with quiet_libraries():
                lengths = [len(ids) for ids in self.tokenizer(rows).input_ids]
            cut += [row for row, n in zip(rows, lengths, strict=True) if n > limit]
            ids = self.tokenizer(
                rows, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
            ).input_ids
            parts.append(self.encoder(ids.to(device))[0].float().cpu())
        if cut:
            alert(f"Prompts cut to {limit} tokens: {len(cut)}, the first {cut[0][:60]!r}.")
        return torch.cat(parts)


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        InputError: if it cannot be read or has none.
    """
    try:
        require_regular(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"The prompts {path} cannot be read ({reason}).") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"The prompts {path} hold no line of text; write one prompt per line.")
    return prompts
