"""The constructor arguments of EDM's networks, checked: they may come from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dsno.support.errors import InputError

# These bound what building a network from a file may cost.
MOST_BLOCKS = 64
MOST_PIXELS = 2**16


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's arguments, checked and JSON-able.

    Raises:
        InputError: for one of the wrong kind or range.
    """
    config = {k: v for k, v in arguments.items() if k not in ("self", "__class__")}
    for name, value in config.items():
        if name in ("channel_mult", "attn_resolutions", "resample_filter"):
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise InputError(f"`{name}` must be a list of numbers, not {value!r}.")
            config[name] = list(value)
    for name, value in config.items():
        _check_argument(name, value)
    _check_sizes(config)
    return config


def _check_argument(name: str, value: Any) -> None:
    if name.endswith("_type"):
        return
    if name in ("dropout", "label_dropout"):
        if not _is_number(value) or not 0 <= value < 1:
            raise InputError(f"`{name}` must be a number from 0 to less than 1, not {value!r}.")
        return
    if name == "resample_filter":
        if len(value) % 2 or not all(map(_is_number, value)) or not 0 < sum(value) < math.inf:
            raise InputError(
                f"`{name}` must be an even count of numbers with a positive sum, not {value!r}."
            )
        return
    least = 0 if name in ("label_dim", "augment_dim") else 1
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"`{name}` takes whole numbers of at least {least}, not {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_sizes(config: Mapping[str, Any]) -> None:
    levels, resolution = len(config["channel_mult"]), config["img_resolution"]
    if config["num_blocks"] > MOST_BLOCKS or resolution > MOST_PIXELS:
        raise InputError(
            f"A network may have up to {MOST_BLOCKS} blocks per level and images of up to "
            f"{MOST_PIXELS} pixels a side, not {config['num_blocks']} and {resolution}."
        )
    if levels == 0 or resolution % 2 ** (levels - 1):
        raise InputError(
            f"Images of {resolution}x{resolution} cannot be halved {levels - 1} times; "
            "`channel_mult` needs one to as many levels as can be."
        )
    if config["model_channels"] % 4:
        raise InputError(
            f"`model_channels` must be a multiple of 4, not {config['model_channels']}."
        )
