"""Everything that is waiting for a GPU, in one command and a given time.

    python benchmarks/gpu/visit.py --data FOLDER --minutes 9 --out FOLDER
    python benchmarks/gpu/visit.py --parts ceilings,speed --minutes 6 --out FOLDER
    python benchmarks/gpu/visit.py --rehearse              (every line, on the CPU, at toy size)
    python benchmarks/gpu/visit.py --show FOLDER           (tables of an earlier visit)

Each part is a process of its own with a share of the time that is left, and is ended when that is
over; what it has recorded by then stays, and the next one begins. README.md says what comes back.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# before this folder: `speed` is benchmarks/speed.py, `gpu.speed` the part
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from dsno.support.console import say
from dsno.support.errors import DsnoError, InputError
from gpu import results
from gpu.images import as_npz, made_up
from gpu.work import Work

HERE = Path(__file__).resolve().parent
if str(HERE) in sys.path:
    sys.path.remove(str(HERE))  # its `models` would hide the one of the authors' code
ROOT = HERE.parents[1]
PARTS = ("ceilings", "speed", "teacher", "collection", "student", "ablations", "imagenet64")
NEED_IMAGES = {"teacher", "collection", "student", "ablations"}
TOY_MINUTES, TOY_IMAGES = 30.0, 80
"""Of a rehearsal: its limit, on however slow a machine, and its images."""
LEAST = 40.0
"""Seconds of a part, of which libraries take ten to be loaded."""
GRACE = 5.0
"""Seconds from asking a part to end until it is ended."""
TABLE = 3.0
"""Seconds kept for the table."""
LARGEST = 16_000_000
"""Bytes of a file that comes back."""


def share(part: str) -> float:
    """Of the time, beside those of the other parts."""
    return float(importlib.import_module(f"gpu.{part}").SHARE)


def box(part: str, parts: Sequence[str], left: float) -> float:
    """Seconds of a part when `parts`, itself the first, are still to be done in `left` seconds."""
    own = left * share(part) / sum(share(other) for other in parts)
    return min(max(own, LEAST), left)


def soft(seconds: float) -> float:
    """After how many seconds of its box a part should be finished by itself."""
    return seconds - min(0.1 * seconds, 20.0)


# ------------------------------------------------------------------------------------- one part


def do(part: str, text: str) -> None:
    """The work of one part, in this process."""
    work = Work.from_json(text)
    # nothing is recorded of what the end of the time tears off; a training saves itself first
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("the time is over"))
    if work.toy:  # traced as always, but no kernels are written
        torch.compile = functools.partial(torch.compile, backend="eager")
        torch.set_num_threads(1)
    try:
        importlib.import_module(f"gpu.{part}").run(work)
    except InputError as error:
        work.record(part, "", None, why=results.FAILED, reason=str(error))
        sys.exit(f"{part}: {error}")


def run_part(work: Work, seconds: float, environment: dict[str, str]) -> str:
    """Start a part, end it if it takes longer than it may, and return what became of it."""
    command = [sys.executable, str(HERE / "visit.py"), "--one", work.part, work.to_json()]
    before = len(results.read(work.out))
    with (work.out / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"==== {work.part}\n")
        log.flush()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return results.LATE
        finally:
            _end(process)
    failed = any(r.get("why") == results.FAILED for r in results.read(work.out)[before:])
    return results.DONE if code == 0 and not failed else results.FAILED


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


# ------------------------------------------------------------------------------------ the visit


def visit(options: argparse.Namespace, command: str) -> int:
    """All parts; 0 if every one did all of its work, else 1."""
    end = time.time() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="visit-") as folder:
        scratch = Path(folder)
        environment = parts_environment()
        images = _images(options, scratch)
        outcomes = []
        for index, part in enumerate(options.parts):
            begun = time.time()
            left = end - begun - TABLE
            seconds = left if options.rehearse else box(part, options.parts[index:], left)
            until = begun + soft(seconds)
            folders = tuple(options.weights)
            work = Work(
                part,
                options.out,
                scratch,
                folders,
                images,
                until,
                options.rehearse,
                options.commit,
                command,
                options.only,
            )
            print(f"{part}: {seconds:.0f} s at most", flush=True)
            status = run_part(work, max(seconds - GRACE, 1.0), environment)
            outcomes.append(status)
            minutes = (time.time() - begun) / 60
            results.append(options.out, {**work.origin(), "status": status, "minutes": minutes})
    show(options.out)
    for path in sorted(options.out.iterdir()):
        if path.is_file() and path.stat().st_size > LARGEST:
            print(f"{path} has {path.stat().st_size:,} bytes, more than {LARGEST:,}.")
    return int(any(status != results.DONE for status in outcomes))


def _images(options: argparse.Namespace, scratch: Path) -> str:
    """The npz file of real images; empty where no part needs any."""
    if not NEED_IMAGES & set(options.parts):
        return ""
    source = made_up(scratch / "images", TOY_IMAGES) if options.rehearse else options.data
    return str(as_npz(source, scratch / "images.npz"))


def parts_environment() -> dict[str, str]:
    """Environment of the parts: they find this checkout, installed or not."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def commit() -> str:
    """Of the checkout; a copy without its history does not know."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def show(folder: Path) -> None:
    """Print the tables."""
    records = results.read(folder)
    print(f"\n{results.table(records)}\n\n{results.provenance(records)}")


def _parts(text: str) -> list[str]:
    named = [name for name in text.split(",") if name]
    unknown = sorted(set(named) - set(PARTS))
    if unknown or not named:
        raise argparse.ArgumentTypeError(
            f"there is no part {', '.join(unknown) or text!r}; known are {', '.join(PARTS)}"
        )
    return [part for part in PARTS if part in named]


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError("expected minutes above 0")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--parts", type=_parts, default=list(PARTS), help="some of all, by commas")
    found.add_argument("--minutes", type=_minutes, default=9.0, help="for everything")
    found.add_argument("--out", type=Path, help="what comes back; $OUT, or runs/visit")
    found.add_argument("--data", type=Path, help="npz file, or folder of parquet shards")
    found.add_argument(
        "--from", dest="source", type=Path, help="weights of an earlier visit: its --out folder"
    )
    found.add_argument("--commit", default="", help="of the code, where git cannot tell")
    found.add_argument(
        "--only",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=(),
        help="of each part the pieces whose name has one of these words, by commas",
    )
    found.add_argument("--rehearse", action="store_true", help="every part at toy size")
    found.add_argument("--show", type=Path, help="print the tables of this folder and do nothing")
    found.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    read = parser()
    options: Any = read.parse_args(arguments)
    if options.one:
        do(*options.one)
        return 0
    if options.show is not None:
        show(options.show)
        return 0
    if options.data is None and not options.rehearse and (lack := NEED_IMAGES & set(options.parts)):
        read.error(f"the parts {', '.join(sorted(lack))} need images: give --data")
    options.out = options.out or Path(os.environ.get("OUT") or ROOT / "runs" / "visit")
    options.weights = [options.source] if options.source else []
    options.commit = options.commit or commit()
    if options.rehearse:
        options.minutes = TOY_MINUTES
    else:
        options.weights.append(HERE / "weights")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a part is ended, too
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return visit(options, shlex.join(["python", "benchmarks/gpu/visit.py", *words]))
    except DsnoError as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
