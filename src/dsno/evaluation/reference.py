"""What samples are compared with: data, samples of the teacher or statistics; and how far it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.diffusion.denoisers import DenoiserProtocol
from dsno.evaluation.batchwise import Desk, Work, shared_progress
from dsno.evaluation.feature_cache import is_kept, keep, kept
from dsno.evaluation.features import Outputs, Space, Wanted, build_space, usual_spaces
from dsno.evaluation.frechet import frechet_distance, moments
from dsno.evaluation.measures import KEPT, ReferenceSpace, by_metric
from dsno.evaluation.samplers import Decode, Draws, as_is, teacher_sampler
from dsno.evaluation.statistics import load_statistics
from dsno.evaluation.validity import Shortage, shortages
from dsno.recipes.choices import FeatureName
from dsno.support import distributed, seeds
from dsno.support.errors import InputError
from dsno.support.files import fingerprint
from dsno.support.transfers import runs_ahead

CHUNK = 5000
"""Real images whose features are computed at a time, where it is not said."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, in every feature space.

    Attributes:
        name: of the data.
        count: how many items; 0 if statistics do not say.
        spaces: the feature spaces by name.
        records: the entry of each space in metrics.json.
        floor: distance between two halves of the reference in each; none for statistics.
        by_space: what measuring samples needs of the reference in each; on the first process only.
        data: the items; None for statistics.
    """

    name: str
    count: int
    spaces: Mapping[str, Space]
    records: Mapping[str, Mapping[str, Any]]
    floor: Mapping[str, float] = field(default_factory=dict)
    by_space: Mapping[str, ReferenceSpace] = field(default_factory=dict)
    data: Dataset | None = None

    def distances(self, samples: Tensor) -> dict[str, float]:
        """Frechet distance of samples to the reference in each space."""
        return {
            name: self.by_space[name].distance(space(samples).features)
            for name, space in self.spaces.items()
        }

    def measure(self, samples: Tensor) -> dict[str, dict[str, Any]]:
        """All that is measured of samples: of each metric, its value in each space that has it."""
        return self.measure_of({name: space(samples) for name, space in self.spaces.items()})

    def measure_of(self, made: Mapping[str, Outputs]) -> dict[str, dict[str, Any]]:
        """The same of samples whose features are known."""
        return by_metric(
            {name: self.by_space[name].measure(*found) for name, found in made.items()}
        )

    def shortages(self, samples: int) -> list[Shortage]:
        """What is too small for its distance, if so many samples are measured."""
        dimensions = {name: space.dimension for name, space in self.spaces.items()}
        found = shortages(dimensions, samples, self.count)
        unknown = set() if self.floor else {"half"} | (set() if self.count else {"reference"})
        return [shortage for shortage in found if shortage.of not in unknown]

    def summary(self) -> dict[str, Any]:
        """Its entry in metrics.json."""
        return {
            "name": self.name,
            "count": self.count,
            "split_half_distance": dict(self.floor),
        }


def build_reference(
    data: Dataset,
    names: Sequence[FeatureName],
    *,
    seed: int,
    wanted: Wanted | None = None,
    desk: Desk | None = None,
    batch_size: int = CHUNK,
) -> Reference:
    """Prepare the feature spaces, the usual ones if `names` is empty; all processes call this.

    Args:
        data: to compare with.
        names: of the feature spaces.
        seed: the classifier's and the halves'.
        wanted: where features are computed, and files of networks; the data and the seed are set.
        desk: where unfinished work is kept; in memory if None.
        batch_size: items at a time.

    Raises:
        InputError: if a space needs what is not there: labels, a file, a package.
    """
    desk = desk or Desk()
    wanted = dataclasses.replace(
        wanted or Wanted(data.sample_shape), shape=data.sample_shape, data=data, seed=seed
    )
    spaces: dict[str, Space] = {
        name: build_space(name, wanted) for name in names or usual_spaces(data)
    }
    outputs = _outputs(data, spaces, desk, batch_size)
    where = measuring_device(wanted.device)
    order = torch.from_numpy(seeds.generator(seed, seeds.SPLIT, 1).permutation(len(data)))
    half = len(order) // 2
    by_space: dict[str, ReferenceSpace] = {}

    def floor() -> dict[str, float]:
        found = {}
        for name, made in outputs.items():
            features = made.features.to(where)
            by_space[name] = ReferenceSpace(moments(features), features[order[:KEPT]])
            halves = (moments(features[rows]) for rows in (order[:half], order[half:]))
            found[name] = frechet_distance(*halves)
        return found

    return Reference(
        data.name,
        len(data),
        spaces,
        {name: space.record for name, space in spaces.items()},
        distributed.on_main(floor),
        by_space,
        data,
    )


def measuring_device(device: torch.device) -> torch.device:
    """Where distances are computed: on a GPU that has float64, else on the CPU."""
    return device if runs_ahead(device) else torch.device("cpu")


def _outputs(
    data: Dataset, spaces: Mapping[str, Space], desk: Desk, batch_size: int
) -> dict[str, Outputs]:
    """Features of the data; on the first process only.

    Those of costly spaces come from the cache, or are computed by all processes on the desk.
    """
    costly = {name: space for name, space in spaces.items() if space.is_costly}
    left = distributed.on_main(lambda: [n for n, s in costly.items() if not is_kept(data, s)])

    def run(items: range) -> dict[str, Tensor]:
        rows = torch.arange(items.start, items.stop)
        return rows_of([costly[name] for name in left], data.rows(rows))

    # Named by what it is of, as the folder of a run serves several evaluations.
    mark = [data.digest, [costly[name].identity for name in left]] if left else []
    label = "features of the reference"
    work = Work(f"reference-{fingerprint(mark)}", label, len(data), batch_size, run)
    if left:
        with shared_progress(label, len(data), done=desk.done(work), unit="image") as advance:
            desk.compute(work, advance)
            if distributed.is_main():
                made = outputs_in(desk.results(work, advance), left)
                for name, found in made.items():
                    keep(data, costly[name], found)
                desk.clear(work.name)
    if not distributed.is_main():
        return {}
    cheap = [space for space in spaces.values() if not space.is_costly]
    chunks = torch.split(torch.arange(len(data)), CHUNK)
    batches = [rows_of(cheap, data.rows(rows)) for rows in chunks] if cheap else [{}]
    rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    here = outputs_in(rows, [space.name for space in cheap]) | (made if left else {})
    return {name: here[name] if name in here else kept(data, spaces[name]) for name in spaces}


def rows_of(spaces: Iterable[Space], images: Tensor) -> dict[str, Tensor]:
    """What every space makes of images, as arrays with a row each."""
    rows = {}
    for space in spaces:
        made = space(images)
        rows[f"{space.name}.features"] = made.features
        if made.logits is not None:
            rows[f"{space.name}.logits"] = made.logits
    return rows


def outputs_in(rows: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Outputs]:
    """The inverse of `rows_of`."""
    return {n: Outputs(rows[f"{n}.features"], rows.get(f"{n}.logits")) for n in names}


def reference_of_statistics(
    path: Path, names: Sequence[FeatureName], *, wanted: Wanted
) -> Reference:
    """A reference of which mean and covariance are known.

    Args:
        path: of the .npz file.
        names: the one feature space; if empty, the one the file names.
        wanted: what the space is made for.

    Raises:
        InputError: if the file is damaged, of other features, or does not say of which it is and
            none is named.
    """
    found = distributed.on_main(lambda: load_statistics(path))
    if len(names) > 1:
        raise InputError(
            f"Statistics are of one feature space, so name one of evaluate.features, not "
            f"{len(names)}."
        )
    if not names and found.space is None:
        raise InputError(
            f"{path} does not say which features it is of; name them, such as "
            "evaluate.features=[inception]."
        )
    name: Any = names[0] if names else found.space
    if name not in FEATURE_NAMES:
        raise InputError(f"{path} is of the features {name!r:.60}, which are not known here.")
    space = build_space(name, wanted)
    found.check(space, path)
    return Reference(
        found.name,
        found.moments.count,
        {name: space},
        {name: space.record},
        by_space={name: ReferenceSpace(found.moments.to(measuring_device(wanted.device)))},
    )


FEATURE_NAMES: tuple[FeatureName, ...] = get_args(FeatureName)


def samples_of_teacher(
    denoiser: DenoiserProtocol,
    draws: Draws,
    count: int,
    *,
    steps: int,
    decode: Decode = as_is,
    desk: Desk | None = None,
) -> Dataset:
    """A reference where there are no real data: the teacher's samples, solved accurately.

    They start from other noises than the samples that are measured. All processes call this.

    Args:
        denoiser: the teacher, on the draws' device.
        draws: of the samples that are measured.
        count: samples.
        steps: of the solver.
        decode: from states to images.
        desk: where unfinished work is kept; in memory if None.
    """
    desk = desk or Desk()
    sampler = teacher_sampler(denoiser, "dpm++2m", steps, "uniform", decode)
    others = dataclasses.replace(draws, seed=(draws.seed + 1) % 2**63)

    def run(items: range) -> dict[str, Tensor]:
        return {"images": sampler.generate(*others.batch(items))}

    work = Work("teacher", "teacher", count, draws.batch_size, run, cost=sampler.nfe)
    total, done = count * sampler.nfe, desk.done(work) * sampler.nfe
    with shared_progress("sampling the teacher", total, done=done, unit="evaluation") as advance:
        desk.compute(work, advance)
        images = desk.results(work, advance)["images"]
    return Dataset("samples of the teacher", images)
