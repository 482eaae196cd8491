"""How far two halves of a data set are apart in every feature space, by the number of images.

    export OMP_NUM_THREADS=1
    python benchmarks/feature_spaces.py --data CIFAR --limit imagenet=8000 pixels=8000

Halves of one set have the same distribution, so each number is the floor of its space at that n:
what a perfect model would have, and the bias of the Frechet distance from few images. Prints
Markdown, and writes the numbers with `--out`. The spaces `inception` and `torchscript` need their
files; the classifier is trained, or read with `--classifier benchmarks/gpu/weights`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from gpu import weights

from dsno.data.dataset import Dataset
from dsno.data.load import load_data
from dsno.evaluation.features import Classifier, Space, TrainedClassifier, Wanted, distance_name
from dsno.evaluation.frechet import frechet_distance, moments
from dsno.evaluation.reference import CHUNK, build_reference
from dsno.evaluation.validity import enough
from dsno.recipes.choices import FeatureName
from dsno.support import distributed, seeds
from dsno.support.environment import environment
from dsno.support.files import write_json

SPACES: tuple[FeatureName, ...] = ("pixels", "thumbnail", "classifier", "imagenet")
COUNTS = (2000, 8000, 50000)


def halves(features: torch.Tensor, count: int, seed: int) -> float:
    """The distance between random halves of the first `count` rows."""
    order = torch.from_numpy(seeds.generator(seed, seeds.SPLIT, 1).permutation(count))
    one, other = (moments(features[rows]) for rows in order.tensor_split(2))
    return frechet_distance(one, other)


def kept_classifier(folder: Path, data: Dataset, device: torch.device) -> Space:
    """The classifier that visits to a GPU measure with."""
    found = weights.load((folder,), "classifier")
    if found is None or data.num_classes is None:
        raise SystemExit(f"{folder} has no classifier, or {data.name} no labels.")
    network = Classifier(data.sample_shape[0], data.num_classes)
    network.load_state_dict(found[0])
    trained = TrainedClassifier(network.eval(), float(found[1]["accuracy"]))
    return trained.space(int(found[1]["seed"]), device)


def measure(
    data: Dataset, space: FeatureName, limit: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for every count up to the limit."""
    first = data
    if limit < len(data):
        rows = torch.arange(limit)
        labels = None if data.labels is None else data.labels[rows]
        first = Dataset(data.name, data.rows(rows), labels, data.num_classes)
    wanted = Wanted(
        data.sample_shape,
        inception=options.inception,
        torchscript=options.torchscript,
        device=distributed.device(),
    )
    start = time.process_time()
    if space == "classifier" and options.classifier is not None:
        kept = kept_classifier(options.classifier, data, wanted.device)
        parts = torch.split(torch.arange(len(first)), CHUNK)
        features = torch.cat([kept(first.rows(rows)).features for rows in parts])
        record = dict(kept.record)
    else:
        found = build_reference(first, [space], seed=options.seed, wanted=wanted)
        features, record = found.by_space[space].features, dict(found.records[space])
    seconds = time.process_time() - start
    counts = [n for n in options.counts if n <= len(first)]
    return [
        {
            "space": space,
            "distance": distance_name(space),
            "record": record,
            "n": n // 2,
            "enough": enough(record["dimension"]),
            "value": halves(features, n, options.seed),
            "milliseconds_per_image": 1000 * seconds / len(first),
        }
        for n in counts
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; a distance of too few images for its dimension is in brackets."""
    lines = [
        "| features | dimension | images in each half | distance of the halves |",
        "|---|---|---|---|",
    ]
    for row in rows:
        value = f"{row['value']:.4g}" if row["n"] >= row["enough"] else f"({row['value']:.4g})"
        dimension = row["record"]["dimension"]
        lines.append(f"| {row['space']} | {dimension:,} | {row['n']:,} | {value} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of parquet files with labels")
    parser.add_argument("--spaces", nargs="+", default=list(SPACES))
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--limit", nargs="*", default=[], metavar="SPACE=N")
    parser.add_argument("--inception", default="", help="its file; downloaded if empty")
    parser.add_argument("--torchscript", default="", help="a detector's file")
    parser.add_argument("--classifier", type=Path, help="folder with one that was trained before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    limits = {name: int(n) for name, _, n in (text.partition("=") for text in options.limit)}
    data = load_data("huggingface", options.data)
    rows = []
    for space in options.spaces:
        rows += measure(data, space, limits.get(space, len(data)), options)
        print(f"{space}: {rows[-1]['milliseconds_per_image']:.1f} ms an image", flush=True)
    print(table(rows))
    if options.out is not None:
        write_json(options.out, {"rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
