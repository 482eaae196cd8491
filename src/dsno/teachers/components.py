"""Components of a diffusers folder: networks, autoencoders, text encoders, loaded strictly.

Only safetensors are read: pickled weights (.bin, .ckpt) can run code when they are loaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dsno.backbones.misfits import mismatch_sentence
from dsno.backbones.safe_loading import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    best_variant,
    check_component,
    check_text_encoder,
    first_line,
)
from dsno.backbones.safe_loading import NETWORKS as NETWORKS
from dsno.backbones.text_encoder import TextEncoder
from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError


def load_component(folder: Path, known: tuple[str, ...], what: str) -> nn.Module:
    """A diffusers model, by the class its config.json names.

    Args:
        folder: with config.json and safetensors.
        known: names of the classes accepted.
        what: what it is, for errors: "network", "autoencoder".

    Raises:
        InputError: for another class, pickled or missing weights, or weights that do not fit.
    """
    name = check_component(folder, known, what)
    import diffusers  # seconds

    try:
        with quiet_libraries():
            network, info = getattr(diffusers, name).from_pretrained(
                folder,
                use_safetensors=True,
                variant=best_variant(folder, DIFFUSERS_STEM),
                local_files_only=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,  # nothing stays on the meta device
                ignore_mismatched_sizes=True,  # reported below, with the missing and the extra
                output_loading_info=True,
            )
    except InputError:
        raise
    except Exception as error:  # whatever a damaged configuration or file makes a library raise
        raise InputError(
            f"The {what} in {folder} cannot be loaded ({first_line(error)}); check its "
            "config.json, or fetch or save it again."
        ) from None
    mismatched = [str(row[0]) for row in info["mismatched_keys"]]
    missing = [k for k in info["missing_keys"] if k not in mismatched]
    sentence = mismatch_sentence(
        str(folder), missing=missing, extra=info["unexpected_keys"], misshaped=mismatched
    )
    if sentence:
        raise InputError(sentence)
    loaded: nn.Module = network.eval().requires_grad_(False)
    return loaded


def load_text_encoder(tokenizer: Path, encoder: Path) -> TextEncoder:
    """A tokenizer and a text encoder of `transformers`.

    Raises:
        InputError: if `transformers` is missing, or for another class of encoder or damaged files.
    """
    try:
        import transformers  # seconds
    except ImportError:
        raise InputError(
            "A text-conditional teacher needs transformers; run pip install 'dsno[text]'."
        ) from None
    name = check_text_encoder(encoder)
    try:
        with quiet_libraries():
            words = transformers.AutoTokenizer.from_pretrained(
                tokenizer, local_files_only=True, trust_remote_code=False
            )
            model, info = getattr(transformers, name).from_pretrained(
                encoder,
                local_files_only=True,
                use_safetensors=True,
                variant=best_variant(encoder, TRANSFORMERS_STEM),
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # whatever a damaged file makes a library raise
        raise InputError(
            f"The text encoder in {encoder} cannot be loaded ({first_line(error)}); check its "
            "config.json, or fetch or save it again."
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:
        sentence = mismatch_sentence(str(encoder), missing=missing, extra=[], misshaped=[])
        raise InputError(sentence)
    return TextEncoder(words, model.eval().requires_grad_(False))
