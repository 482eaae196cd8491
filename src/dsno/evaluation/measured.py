"""What was measured of one sampler, kept for an evaluation that is resumed or made fuller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsno.evaluation.batchwise import Desk
from dsno.evaluation.samplers import Sampler
from dsno.support.errors import InputError
from dsno.support.files import read_json, replacing, write_json


@dataclass(frozen=True)
class Row:
    """What was measured of a sampler.

    Attributes:
        measures: by name, as in metrics.json.
        pictures: the first samples, (n, C, H, W).
    """

    measures: Mapping[str, Any]
    pictures: Tensor


def _paths(desk: Desk, sampler: Sampler) -> tuple[Path, Path] | None:
    if desk.folder is None:
        return None
    return desk.folder / f"{sampler.slug}.json", desk.folder / f"{sampler.slug}.safetensors"


def write_row(desk: Desk, sampler: Sampler, row: Row) -> None:
    """Keep a row on the desk, if that has a folder; the measures last."""
    if (paths := _paths(desk, sampler)) is None:
        return
    with replacing(paths[1]) as temporary:
        save_file({"pictures": row.pictures}, temporary)
    write_json(paths[0], row.measures)


def read_row(desk: Desk, sampler: Sampler) -> Row | None:
    """The row of a finished sampler; None if there is none, or it is damaged."""
    if (paths := _paths(desk, sampler)) is None or not paths[0].is_file():
        return None
    try:
        measures = read_json(paths[0], "measurement", "it is made again")
        return Row(measures, load_file(paths[1])["pictures"])
    except (InputError, OSError, SafetensorError, KeyError):
        return None
