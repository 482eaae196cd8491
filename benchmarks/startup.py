"""What each command costs before it does anything: processor time, and the packages it imports.

    python benchmarks/startup.py                        # commands that need no run
    python benchmarks/startup.py --run runs/digits      # and those that look at a finished one
    python benchmarks/startup.py --before OTHER/src     # beside another version, in turns

Every command is started in a process of its own, `--rounds` times; all take turns, so do the two
versions. Given are medians of the processor time of the whole process, which leaves out that the
machine was busy with something else; `python -X importtime` says which packages it went to.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "python": ("-c", ""),
    "torch": ("-c", "import torch"),
    "torch, diffusers' pipeline and U-Net": (
        "-c",
        "import torch; from diffusers import DiffusionPipeline, UNet2DModel",
    ),
}
"""What nothing that needs as much can be below."""
COMMANDS = (
    "--version",
    "--help",
    "info",
    "recipes",
    "run --help",
    "run digits --dry-run",
    "run digits teacher.stepz=3",
    "evaluate digits --dry-run",
    "sample none/such",
)
OF_A_RUN = (
    "trajectories info {run}",
    "evaluate {run} --dry-run",
    "train {run}/recipe.yaml --out {run}",
    "sample {run} --num 1 --out {out}",
)
"""`train` finds everything done; `sample` makes one sample."""
LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)")


def seconds(words: Sequence[str], source: Path) -> float:
    """Processor time of one process, with its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _start(words, source)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def by_package(report: str) -> Counter[str]:
    """Seconds that the import of each package took itself, from what `-X importtime` prints."""
    found: Counter[str] = Counter()
    for microseconds, module in LINE.findall(report):
        found[module.partition(".")[0]] += int(microseconds) / 1e6
    return found


def _start(words: Sequence[str], source: Path, *options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *options, *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 2):  # 2: a command that is refused
        raise SystemExit(f"{words} failed:\n{done.stderr}")
    return done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, help="a finished run")
    parser.add_argument("--before", type=Path, help="the src folder of another version")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default=os.devnull, help="a .png file for the sample")
    options = parser.parse_args()
    words = [*COMMANDS, *(OF_A_RUN if options.run else ())]
    works: dict[str, tuple[str, ...]] = dict(FLOORS)
    for line in words:
        given = line.format(run=options.run, out=options.out).split()
        works[f"dsno {line}"] = ("-m", "dsno", *given)
    sources = [ROOT / "src", *([options.before.resolve()] if options.before else [])]
    taken: dict[tuple[str, Path], list[float]] = {}
    for _ in range(options.rounds):
        for label, work in works.items():
            for source in sources:
                taken.setdefault((label, source), []).append(seconds(work, source))
    more = " before | now / before |" if options.before else ""
    print(f"| command | seconds |{more} heaviest imports |")
    print("|---|---|" + "---|---|" * bool(options.before) + "---|")
    for label, work in works.items():
        times = [statistics.median(taken[label, source]) for source in sources]
        columns = [f"{times[0]:.2f}", *(f"{t:.2f} | {times[0] / t:.2f}" for t in times[1:])]
        packages = by_package(_start(work, ROOT / "src", "-X", "importtime")).most_common(4)
        heaviest = ", ".join(f"{name} {spent:.2f}" for name, spent in packages if spent >= 0.01)
        print(f"| `{label}` | {' | '.join(columns)} | {heaviest} |")


if __name__ == "__main__":
    main()
