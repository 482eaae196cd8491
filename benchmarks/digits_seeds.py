"""The digits recipe over several seeds: the table of results/digits.md.

    .venv/bin/python benchmarks/digits_seeds.py --seeds 0 1 2 --out runs/digits-seeds

Runs `dsno run digits seed=S` for each seed, evaluates it again with every sampler of `CURVES` into
the same folder, and prints Markdown. Finished runs are not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from dsno.cli import main as dsno

CURVES = [
    {"solver": "ddim", "steps": [1, 2, 4, 8, 16, 32, 64, 128]},
    {"solver": "ddim", "steps": [8, 16, 32], "spacing": "quadratic"},
    {"solver": "ddim", "steps": [8, 16, 32], "spacing": "karras"},
    {"solver": "dpm++2m", "steps": [4, 8, 16, 32]},
    {"solver": "dpm++2m", "steps": [4, 8, 16, 32], "spacing": "quadratic"},
    {"solver": "heun", "steps": [4, 8, 16]},
]


def measure(seed: int, folder: Path, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """The demo's evaluation of one seed and the full one."""
    found = {}
    for name, extra in (
        ("demo", []),
        ("full", [f"evaluate.curves={json.dumps(CURVES)}", "evaluate.reference_steps=128"]),
    ):
        kept = folder / f"{name}-{seed}.json"
        if not kept.exists():
            run = folder / f"seed-{seed}"
            code = dsno(["run", "digits", f"seed={seed}", *overrides, *extra, "--out", str(run)])
            if code:
                sys.exit(code)
            kept.write_text((run / "report" / "metrics.json").read_text())
        found[name] = json.loads(kept.read_text())
    return found


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["label"], row["spacing"] or "-", row["nfe"]


def table(metrics: list[dict[str, Any]], seeds: list[int]) -> str:
    """One row a sampler: distances per seed, their mean, pixels, paired error, time."""
    by = [{key(r): r for r in m["samplers"]} for m in metrics]
    seed_names = " | ".join(f"seed {s}" for s in seeds)
    lines = [
        f"| sampler | spacing | evaluations | {seed_names} | mean | pixels, mean | paired L1, mean "
        "| time / student's, median |",
        "|---|---|---|" + "---|" * (len(seeds) + 4),
    ]
    for k in by[0]:
        rows = [b[k] for b in by]
        distances = [r["frechet_distance"]["classifier"] for r in rows]
        pixels = statistics.mean(r["frechet_distance"]["pixels"] for r in rows)
        paired = [r["paired_l1"] for r in rows if r["paired_l1"] is not None]
        time = statistics.median(r["relative_time"] for r in rows)
        lines.append(
            f"| {k[0]} | {k[1]} | {k[2]} | "
            + " | ".join(f"{d:.3f}" for d in distances)
            + f" | {statistics.mean(distances):.3f} | {pixels:.3f} | "
            + (f"{statistics.mean(paired):.4f}" if paired else "-")
            + f" | {time:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/digits-seeds"))
    parser.add_argument("overrides", nargs="*", help="key.sub=value, for every run")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = [measure(s, arguments.out, arguments.overrides) for s in arguments.seeds]
    for name in ("demo", "full"):
        print(f"\n### {name}\n\n{table([f[name] for f in found], arguments.seeds)}")
    first = found[0]["full"]
    print("\nfeatures:", json.dumps(first["features"]))
    print("two halves of the real data:", json.dumps(first["reference"]["split_half_distance"]))
    for seed, f in zip(arguments.seeds, found, strict=True):
        print(f"seed {seed} seconds:", json.dumps(f["demo"]["durations"]))
    print("environment:", json.dumps(first["environment"]))


if __name__ == "__main__":
    main()
