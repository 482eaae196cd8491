"""Hub repositories as local folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsno.support.errors import InputError


def looks_like_hub_id(source: str) -> bool:
    """Whether a name that is no local path could be `owner/name` on the Hub."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def download(
    name: str, *, allow: Sequence[str] | None = None, ignore: Sequence[str] | None = None
) -> Path:
    """The local copy of a Hub repository, downloaded if it is not in the cache.

    Args:
        name: `owner/name`.
        allow: patterns of the files wanted; all if None.
        ignore: patterns of files not wanted.

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
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"There is no local folder {name}, and it cannot be downloaded from the Hub "
            f"({type(error).__name__}); check the name or the connection."
        ) from None
