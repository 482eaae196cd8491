"""Mean and covariance of features in the layout of EDM's fid.py and pytorch-fid: mu and sigma.

Files of those projects can be read, and they can read the files that are written here, which hold
two arrays more: how many items there were, and the record of the features as JSON.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsno.data.arrays import read_array
from dsno.evaluation.features.space import ABOUT, Space
from dsno.evaluation.frechet import Moments
from dsno.support.errors import InputError
from dsno.support.files import replacing

SYMMETRY = 1e-4
"""A covariance may differ from its transpose by so much of its largest value: float32 rounding."""


@dataclass(frozen=True)
class Statistics:
    """What a file of statistics holds.

    Attributes:
        moments: mean and covariance; their count is 0 if the file does not say.
        name: of the data; the file's if it does not say.
        space: name of the features; None if the file does not say.
        record: of the features.
        identity: hash of the features; None if the file does not say.
    """

    moments: Moments
    name: str
    space: str | None = None
    record: Mapping[str, Any] | None = None
    identity: str | None = None

    def check(self, space: Space, path: Path) -> None:
        """Refuse statistics of other features than the ones compared in.

        Raises:
            InputError: if they are.
        """
        if self.identity is not None and self.identity != space.identity:
            which = f"the features {self.space!r}, not of {space.name!r}"
            if self.space == space.name:
                which = f"other {space.name!r} features{_difference(self.record or {}, space)}"
            raise InputError(
                f"The statistics in {path} are of {which}; compare in the features of the file, or "
                "make it again with --save-statistics."
            )
        found = len(self.moments.mean)
        if found != space.dimension:
            raise InputError(
                f"The statistics in {path} are of {found:,} features, but {space.name!r} has "
                f"{space.dimension:,}; compare in the features they were made with."
            )


def _difference(record: Mapping[str, Any], space: Space) -> str:
    """The first thing of which a record says something else than the space's own."""
    for key in sorted((record.keys() | space.record.keys()) - set(ABOUT)):
        if record.get(key) != space.record.get(key):
            return f" ({key}: {record.get(key)} there, {space.record.get(key)} here)"
    return ""


def save_statistics(path: Path, moments: Moments, name: str, space: Space) -> None:
    """Write statistics as `mu`, `sigma` (float64), `count`, and `features` (JSON).

    Raises:
        WorkError: if the file cannot be written; it is whole or not there.
    """
    about = {
        "name": name,
        "space": space.name,
        "record": dict(space.record),
        "identity": space.identity,
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            mu=moments.mean.cpu().numpy(),
            sigma=moments.covariance.cpu().numpy(),
            count=np.int64(moments.count),
            features=np.array(json.dumps(about)),
        )


def load_statistics(path: Path) -> Statistics:
    """Read statistics, of this package or another.

    Raises:
        InputError: if the file is missing, damaged, or holds no mean and covariance.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; give an .npz file with mu and sigma.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if missing := sorted({"mu", "sigma"} - names):
                raise InputError(
                    f"{path} holds no statistics: expected the arrays mu and sigma, "
                    f"{' and '.join(missing)} missing; write it with --save-statistics."
                )
            kept = names & {"mu", "sigma", "count", "features"}
            arrays = {name: read_array(archive, f"{name}.npy") for name in sorted(kept)}
        mean, covariance = (np.asarray(arrays[n], np.float64) for n in ("mu", "sigma"))
        about = json.loads(str(arrays["features"])) if "features" in arrays else {}
        count = int(arrays["count"]) if "count" in arrays else 0
        found = {key: about.get(key) for key in ("name", "space", "record", "identity")}
        if "features" in arrays and not _is_whole(found):
            raise ValueError("what it says of its features is incomplete")
    except InputError:
        raise
    except Exception as error:  # whatever damage makes of the readers of zip, npy and JSON
        raise InputError(
            f"{path} cannot be read as statistics ({error}); write it again with --save-statistics."
        ) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise InputError(
            f"The statistics in {path} do not fit: mu has shape {mean.shape}, sigma "
            f"{covariance.shape}; expected (d,) and (d, d)."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(f"The statistics in {path} are not finite; make them again.")
    if np.abs(covariance - covariance.T).max() > SYMMETRY * np.abs(covariance).max():
        raise InputError(f"The sigma in {path} is not symmetric, so it is no covariance.")
    moments = Moments(torch.from_numpy(mean), torch.from_numpy(covariance), max(count, 0))
    return Statistics(
        moments, found["name"] or path.stem, found["space"], found["record"], found["identity"]
    )


def _is_whole(about: Mapping[str, Any]) -> bool:
    is_text = all(isinstance(about[key], str) for key in ("name", "space", "identity"))
    return is_text and isinstance(about["record"], dict)
