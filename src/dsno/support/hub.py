"""Hub repositories as local folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsno.support.errors import InputError

HALF_PRECISION = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*")
"""Patterns of second copies of weights: whole files, shards, and their indices."""


def looks_like_hub_id(source: str) -> bool:
    """Whether a name that is no local path could be `owner/name` on the Hub."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def download(
    name: str,
    *,
    allow: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    **options: Any,
) -> Path:
    """The local copy of a Hub repository, downloaded if it is not in the cache.

    Args:
        name: `owner/name`.
        allow: patterns of the files wanted; all if None.
        ignore: patterns of files not wanted.
        options: passed to `huggingface_hub.snapshot_download` (`revision`, `token`, ...).

    Raises:
        InputError: if it is not there or cannot be reached.
    """
    from huggingface_hub import snapshot_download  # seconds
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=None if allow is None else list(allow),
                ignore_patterns=None if ignore is None else list(ignore),
                **options,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"There is no local folder {name}, and it cannot be downloaded from the Hub "
            f"({type(error).__name__}); check the name or the connection."
        ) from None
