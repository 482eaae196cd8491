"""From where saved models are loaded, and what is refused on the way in and out."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from dsno.backbones.safe_loading import first_line, lacks_weights
from dsno.sampling.folder import CARD, PICTURE, REMEDY
from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError, closest
from dsno.support.hub import HALF_PRECISION, download, looks_like_hub_id

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
_DTYPES = ("dtype", "torch_dtype")
_WITHOUT_EFFECT = ("use_safetensors", "low_cpu_mem_usage", "disable_mmap")
"""On what is loaded."""
_CODE = ("custom_pipeline", "custom_revision", "trust_remote_code")
_DEVICES = ("device_map", "max_memory", "offload_folder", "offload_state_dict")
_FORMATS = ("use_onnx", "provider", "sess_options", "provider_options", "use_flashpack")
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(_CODE, "code is never run from a model's folder or the Hub; leave it out"),
    **dict.fromkeys(
        _DEVICES, 'load it first, then call .to("cuda") or .enable_model_cpu_offload()'
    ),
    **dict.fromkeys(_FORMATS, "models are safetensors; leave it out"),
    "quantization_config": "models are not quantised; give dtype=torch.bfloat16 to halve them",
}
_DTYPE_SINCE = (0, 42)
"""Version of diffusers that takes `dtype` and warns of `torch_dtype`."""
_COMPONENTS = ("model", "vae", "text_encoder", "teacher")
_ALLOW = ("*.json", "*.safetensors", "*.txt", "*.model", CARD, PICTURE)
"""What is worth downloading: configurations, weights, the files of tokenizers, and the card."""


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


def check_options(options: dict[str, Any], own: Collection[str]) -> None:
    """Refuse options of `from_pretrained` that would do nothing or run code.

    The type of the weights is then named as the installed diffusers does.

    Args:
        options: changed in place.
        own: those that the class has besides what all have.

    Raises:
        InputError: for an option that is not known or cannot be obeyed, or a type that is none.
    """
    known = {*_HUB_OPTIONS, *_DTYPES, *_WITHOUT_EFFECT, "variant", *own}
    for name, value in options.items():
        if name in _REFUSED:
            if value:  # nothing is asked for by None or False
                raise InputError(f"A model is loaded without {name}: {_REFUSED[name]}.")
        elif name not in known:
            raise InputError(f"Unknown option {name!r} of from_pretrained: {closest(name, known)}")
    for name in _REFUSED:
        options.pop(name, None)
    if options.pop("use_safetensors", None) is False:
        raise InputError("Only safetensors are loaded, never pickles: leave out use_safetensors.")
    given = {v for name in _DTYPES if (v := options.pop(name, None)) is not None}
    if len(given) > 1:
        raise InputError("dtype and torch_dtype are two names of one option: give one of them.")
    for dtype in given:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(
                "The type of the weights must be a floating one of torch, such as "
                f"dtype=torch.bfloat16, not {dtype!r:.60}."
            )
        options[_DTYPES[_diffusers_version() < _DTYPE_SINCE]] = dtype


def _diffusers_version() -> tuple[int, ...]:
    return tuple(int(number) for number in diffusers.__version__.split(".")[:2])


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


def require_folder(path: str | Path) -> None:
    """Refuse to save into what is no folder: the library would log it and save nothing.

    Raises:
        InputError: if it is a file.
    """
    if Path(path).exists() and not Path(path).is_dir():
        raise InputError(f"{path} is not a folder; give a folder to save into.")
