"""Fuzz the readers of strangers' files, guided by coverage.

    pip install atheris
    python tools/fuzz.py recipe --seconds 60        (or: edm, flax, image, labels, npz, ...)
    python tools/fuzz.py all --seconds 60 --out results/fuzz.json

It starts from valid files and damages them for as long as told. Whatever is in a file, its reader
must return or raise one of this package's errors in one printable sentence, and the process must
not grow by more than 400 MB; anything else is a finding. Values of JSON are replaced in place by
hostile ones, other files lose their bytes to libFuzzer's mutations. The last line is JSON:

    {"target": "recipe", "inputs": 40000, "seconds": 60.0, "kept": 1200, "refused": 39000,
     "findings": []}

`kept` says how many inputs reached new code, so that libFuzzer goes on from them. The
exit code is 1 if there is a finding. The same targets run in
`tests/end_to_end/test_hostile_files.py`.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import operator
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Coverage is measured in these; the rest (torch, diffusers) would drown it.
INSTRUMENTED = (
    *("dsno", "yaml", "msgpack", "zipfile", "safetensors", "numpy.lib._format_impl"),
    *("PIL.Image", "PIL.ImageFile", "PIL.PngImagePlugin", "PIL.TiffImagePlugin"),
    *("PIL.JpegImagePlugin", "PIL.GifImagePlugin", "PIL.BmpImagePlugin", "PIL.WebPImagePlugin"),
    "PIL.PpmImagePlugin",
)
LONGEST_INPUT = 2**16
SLOWEST = 30
"""Seconds one input may take."""
EDITS = 3
"""Values of a JSON file that one input replaces at most."""


class Campaign:
    """One target under attack: what was tried and what was found.

    Args:
        name: of the target.
        hostile: the module with the targets and the oracle.
        folder: where its files lie.
        seconds: how long to go on.
        keep: where inputs that found something are kept; None for nowhere.
    """

    def __init__(
        self, name: str, hostile: Any, folder: Path, seconds: float, keep: Path | None
    ) -> None:
        self.name, self.hostile, self.seconds, self.keep = name, hostile, seconds, keep
        self.target = hostile.TARGETS[name]
        self.path: Path = self.target.build(folder)
        self.victim = self.path / self.target.victim
        self.valid = self.victim.read_bytes()
        self.inputs = self.refused = 0
        self.findings: dict[str, str] = {}
        self.corpus = folder / "corpus"
        self.start = time.monotonic()

    def seed(self) -> None:
        """Write what libFuzzer starts from."""
        self.corpus.mkdir()
        seeds = [self.valid]
        if self.target.is_json:  # choices of values, which have no better start than any
            chance = random.Random(1)
            seeds = [chance.randbytes(48) for _ in range(64)]
        elif self.name == "image":
            seeds = self.hostile.images()
        for i, content in enumerate(seeds):
            (self.corpus / f"seed-{i}").write_bytes(content)

    def damaged(self, content: bytes, provider: Any) -> bytes:
        """The file that libFuzzer's bytes stand for."""
        if not self.target.is_json:
            return content
        tree = json.loads(self.valid)
        for edit in range(EDITS):
            places = list(self.hostile.places(tree))
            if not places or (edit and provider.ConsumeIntInRange(0, 2)):
                break
            place = provider.PickValueInList(places)
            own = self._own(provider, functools.reduce(operator.getitem, place, tree))
            value = provider.PickValueInList([*self.hostile.VALUES, *own])
            drop = provider.ConsumeIntInRange(0, 7) == 1
            tree = self.hostile.with_value(tree, place, value, drop=drop)
        return bytes(self.hostile.dumped(tree))

    def _own(self, provider: Any, valid: Any) -> list[Any]:
        """Values that libFuzzer makes up, most of them close to the valid one."""
        made = [provider.ConsumeInt(8), provider.ConsumeFloat(), provider.ConsumeUnicode(12)]
        if isinstance(valid, list):
            return made + [valid[1:], valid + valid, valid[::-1]]
        if isinstance(valid, int | float):
            step = provider.ConsumeIntInRange(-3, 3)
            return made + [valid + step, valid - step, valid * step, -valid] * 3
        return made

    def attack(self, content: bytes, provider: Any) -> None:
        """Try one input; note what it finds."""
        made = self.damaged(content, provider)
        self.victim.write_bytes(made)
        self.inputs += 1
        try:
            self.refused += bool(self.hostile.refusal(self.target.read, self.path))
        except Exception as error:
            self._note(error, made)

    def _note(self, error: Exception, made: bytes) -> None:
        """Remember an error, once for each line it comes from."""
        frames = traceback.extract_tb(error.__traceback__)
        inner = [f for f in frames if f"{os.sep}dsno{os.sep}" in f.filename] or frames
        place = f"{Path(inner[-1].filename).name}:{inner[-1].lineno}"
        if place in self.findings:
            return
        self.findings[place] = f"{type(error).__name__}: {str(error)[:200]}"
        print(f"Found at {place}: {self.findings[place]}", file=sys.stderr, flush=True)
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / f"{self.name}-{place.replace(':', '-')}").write_bytes(made)

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.start > self.seconds

    def record(self) -> dict[str, Any]:
        """What was done, for the last line."""
        return {
            "target": self.name,
            "inputs": self.inputs,
            "seconds": round(time.monotonic() - self.start, 1),
            "kept": len(list(self.corpus.iterdir())),
            "refused": self.refused,
            "findings": [f"{place} {what}" for place, what in self.findings.items()],
        }


def fuzz(name: str, seconds: float, keep: Path | None, seed: int) -> None:
    """Attack one target and end the process, as libFuzzer never returns."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("The fuzzer needs atheris; install it with: pip install atheris")
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' builders
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        hostile: Any = importlib.import_module("tests.hostile")
    if name not in hostile.TARGETS:
        sys.exit(f"There is no target {name!r}; there are {', '.join(sorted(hostile.TARGETS))}.")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    campaign = Campaign(name, hostile, folder, seconds, keep)
    campaign.seed()

    def one(content: bytes) -> None:
        campaign.attack(content, atheris.FuzzedDataProvider(content))
        if campaign.is_over:
            print(json.dumps(campaign.record()), flush=True)
            shutil.rmtree(folder)
            os._exit(1 if campaign.findings else 0)

    options = [f"-max_len={LONGEST_INPUT}", f"-timeout={SLOWEST}", "-rss_limit_mb=4096"]
    options += [f"-seed={seed}", "-print_final_stats=0", "-verbosity=0"]
    options += [f"-artifact_prefix={folder}{os.sep}"]
    atheris.Setup([sys.argv[0], *options, str(campaign.corpus)], one)
    atheris.Fuzz()


def fuzz_all(seconds: float, keep: Path | None, seed: int, out: Path | None) -> int:
    """Attack every target in turn, each in its own process; return the exit code."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    hostile: Any = importlib.import_module("tests.hostile")
    records = []
    for name in sorted(hostile.TARGETS):
        command = [sys.executable, __file__, name, "--seconds", str(seconds), "--seed", str(seed)]
        command += [] if keep is None else ["--keep", str(keep)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        if not lines:  # the process died: that is a finding too
            records.append({"target": name, "findings": [done.stderr[-300:]]})
        else:
            records.append(json.loads(lines[-1]))
        print(json.dumps(records[-1]), flush=True)
    if out is not None:
        found = {"command": shlex.join(["python", *sys.argv]), "targets": records}
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if any(record["findings"] for record in records) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="what to attack, or all; a wrong name lists them")
    parser.add_argument("--seconds", type=float, default=60, help="how long (60)")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that found something")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's random numbers (1)")
    parser.add_argument("--out", type=Path, help="with all: where to write what was done, as JSON")
    given = parser.parse_args(arguments)
    if given.target == "all":
        return fuzz_all(given.seconds, given.keep, given.seed, given.out)
    fuzz(given.target, given.seconds, given.keep, given.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
