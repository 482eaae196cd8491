"""From where saved models are loaded, and what is refused on the way in and out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsno.backbones.safe_loading import first_line, lacks_weights
from dsno.sampling.folder import REMEDY
from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError
from dsno.support.hub import HALF_PRECISION, download, looks_like_hub_id

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
_COMPONENTS = ("model", "vae", "text_encoder", "teacher")
_ALLOW = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What is worth downloading: configurations, weights, and the files of tokenizers."""


def local_folder(source: str | Path, options: dict[str, Any]) -> Path:
    """A folder, or the copy of a Hub repository.

    Args:
        source: path, or `owner/name` on the Hub.
        options: of `from_pretrained`; those that only a download needs are taken out.

    Raises:
        InputError: if it cannot be downloaded.
    """
    hub = {k: v for k in _HUB_OPTIONS if (v := options.pop(k, None)) is not None}
    path = Path(source)
    if path.is_dir() or not looks_like_hub_id(str(source)):
        return path
    if options.get("variant") is None:
        path = download(str(source), allow=_ALLOW, ignore=HALF_PRECISION, **hub)
        if not lacks_weights(path, _COMPONENTS):
            return path
    return download(str(source), allow=_ALLOW, **hub)


@contextlib.contextmanager
def loading(folder: str | Path) -> Iterator[None]:
    """Turn whatever a lying file makes a library raise into one sentence.

    Raises:
        InputError: naming the folder.
    """
    try:
        with quiet_libraries():
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The model in {folder} cannot be loaded ({first_line(error)}); {REMEDY}."
        ) from None


def require_safetensors(safe_serialization: bool, options: Mapping[str, Any]) -> None:
    """Refuse to write what would not be loaded again.

    Raises:
        InputError: for another format than safetensors.
    """
    if not safe_serialization or options.get("use_flashpack"):
        raise InputError(
            "Weights are saved as safetensors only, since others would not be loaded again; leave "
            "safe_serialization and use_flashpack out."
        )
