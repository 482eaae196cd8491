"""Features of data by costly networks, kept for the next evaluation.

A file's name is a hash of the data's pixels and of all that decides the features, so it is never
out of date; what is no longer wanted can be deleted.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dsno.data.dataset import Dataset
from dsno.evaluation.features import Outputs, Space
from dsno.support.cache import cache_folder
from dsno.support.console import alert
from dsno.support.errors import InputError, WorkError
from dsno.support.files import fingerprint, replacing


def _path(data: Dataset, space: Space) -> Path:
    name = fingerprint([data.digest, space.identity])
    return cache_folder() / "features" / f"{space.name}-{name}.safetensors"


def is_kept(data: Dataset, space: Space) -> bool:
    """Whether the features of the data are at hand."""
    return _path(data, space).is_file()


def kept(data: Dataset, space: Space) -> Outputs:
    """The features of the data.

    Raises:
        InputError: if the file is damaged.
    """
    path = _path(data, space)
    try:
        arrays = load_file(path)
        found = Outputs(arrays["features"], arrays.get("logits"))
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run again.") from None
    if found.features.shape != (len(data), space.dimension):
        raise InputError(f"{path} holds other features than its name says; delete it.")
    return found


def keep(data: Dataset, space: Space, found: Outputs) -> None:
    """Keep features; where there is no room for them, say so and go on."""
    arrays = {"features": found.features}
    if found.logits is not None:
        arrays["logits"] = found.logits
    path = _path(data, space)
    try:
        with replacing(path) as temporary:
            save_file(arrays, temporary)
    except WorkError as error:
        alert(f"Features are not kept for the next time: {error}")
