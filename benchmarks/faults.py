"""Break runs in every way, many times, and count how often the end is as if nothing had happened.

    python benchmarks/faults.py --out results/faults.json

A tiny digits run is made once without disturbance. Then its stages are run again and again and
killed, preempted, damaged or denied disk, and continued by the same command; at the end every byte
of the stage is compared with the undisturbed run's. Moments are random and seeded, but what a
process is doing then differs from machine to machine. Disks are filled in a small file system in
memory, which only root may mount; elsewhere that part is left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsno.cli import main as command_line
from dsno.runs.stages import environment
from dsno.support.files import sha256, write_json
from dsno.trajectories.manifest import load_manifest, shard_name

RECIPE = [
    "collect.slices=4",
    "student.slices=4",
    "teacher.network.channels=[8]",
    "teacher.steps=60",
    "teacher.batch_size=8",
    "teacher.checkpoint_every=5",
    "collect.count=320",
    "collect.shard_size=16",
    "collect.batch_size=8",
    "train.steps=60",
    "train.batch_size=8",
    "train.checkpoint_every=5",
]
FOLDERS = {"teacher": "teacher", "collect": "trajectories", "train": "student"}
PARTS = {"collect": ".shard-*.tmp", "train": "checkpoints/.step-*.tmp"}
"""What is there only while a shard or a checkpoint is being written."""


def work(arguments: list[str], log: Path) -> None:
    with log.open("a") as sys.stderr:
        sys.exit(command_line(arguments))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def files(folder: Path, pattern: str) -> list[Path]:
    """The files there are; a folder may vanish while it is read."""
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:
        return []


class Campaign:
    """One run's folder, the undisturbed one beside it, and what was counted."""

    def __init__(self, root: Path, seed: int) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["dsno.cli", "dsno.runs.run", "sklearn.datasets"])
        self.root, self.moments = root, random.Random(seed)
        self.whole, self.out, self.log = root / "whole", root / "run", root / "log"
        self.seconds: dict[str, float] = {}
        for out in (self.out, self.whole):  # the first time also sets the libraries up
            for command in FOLDERS:
                start = time.monotonic()
                self.finish(command, out)
                self.seconds[command] = time.monotonic() - start

    def start(self, command: str, out: Path) -> Any:
        arguments = [command, "digits", *RECIPE, "--out", str(out)]
        process = self.context.Process(target=work, args=(arguments, self.log))
        process.start()
        return process

    def finish(self, command: str, out: Path) -> int:
        process = self.start(command, out)
        process.join()
        return int(process.exitcode)

    def fresh(self, command: str, out: Path | None = None) -> Path:
        """A run in which everything before `command` is done; its folder."""
        out = out or self.out
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.whole, out)
        folder = out / FOLDERS[command]
        shutil.rmtree(folder)
        return folder

    def same(self, command: str) -> bool:
        name = FOLDERS[command]
        return contents(self.out / name) == contents(self.whole / name)

    def stop(
        self, command: str, number: signal.Signals, count: int, at: str = ""
    ) -> dict[str, Any]:
        """Stop a stage `count` times, at random moments or while a file `at` is being written."""
        folder, landed, ends, same, delays = self.fresh(command), 0, 0, 0, []
        begun = len(self.said("Resuming from step"))
        while landed < count:
            process = self.start(command, self.out)
            if at:
                self.await_file(process, folder, at)
            else:
                process.join(self.moments.uniform(0, self.seconds[command]))
            if process.is_alive():
                asked = time.monotonic()
                os.kill(process.pid, number)
                process.join()
                delays.append(time.monotonic() - asked)
                landed += process.exitcode != 0
            if process.exitcode == 0 or landed == count:
                ends += 1
                code = self.finish(command, self.out)
                same += code == 0 and self.same(command)
                folder = self.fresh(command)
        return {
            "fault": f"{command}: {number.name}" + (f" while {at} is written" if at else ""),
            "count": landed,
            "runs_ended": ends,
            "identical": same,
            "resumed_from_a_checkpoint": len(self.said("Resuming from step")) - begun,
            "slowest_exit_seconds": round(max(delays), 2),
        }

    def await_file(self, process: Any, folder: Path, pattern: str) -> None:
        """Return while a file is there, the first, second, ... or eighth time."""
        left, was = self.moments.randrange(8), False
        while process.is_alive():
            now = bool(files(folder, pattern))
            left -= now and not was
            was = now
            if left < 0:
                return

    def said(self, what: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if what in line]

    def damage(self, kind: str, count: int) -> dict[str, Any]:
        """Damage shards of a finished collection; have them found and repaired."""
        found = same = 0
        for _ in range(count):
            self.fresh("teacher")
            shutil.copytree(self.whole, self.out, dirs_exist_ok=True)
            path = self.out / "trajectories" / shard_name(self.moments.randrange(20))
            content = bytearray(path.read_bytes())
            if kind == "bit flipped":
                content[self.moments.randrange(len(content))] ^= 1 << self.moments.randrange(8)
                path.write_bytes(content)
            elif kind == "truncated":
                path.write_bytes(content[: self.moments.randrange(len(content))])
            elif kind == "missing":
                path.unlink()
            else:
                path.with_name(shard_name(20 + self.moments.randrange(9))).write_bytes(content)
            verify = ["trajectories", "verify", str(self.out)]
            found += quietly(verify) == 1
            repaired = quietly([*verify, "--repair"]) == 0 and quietly(verify) == 0
            shutil.rmtree(self.out / "trajectories" / "set-aside", ignore_errors=True)
            same += repaired and self.same("collect")
        return {"fault": f"shard {kind}", "count": count, "found": found, "identical": same}

    def damaged_checkpoint(self, count: int) -> dict[str, Any]:
        """Damage the newest checkpoint of a training that was killed."""
        same, before = 0, len(self.said("is damaged and is not used"))
        for _ in range(count):
            folder = self.fresh("train")
            process = self.start("train", self.out)
            while process.is_alive() and len(files(folder, "checkpoints/step-*.pt")) < 2:
                pass
            process.kill()
            process.join()
            newest = max(files(folder, "checkpoints/step-*.pt"))
            content = bytearray(newest.read_bytes())
            if self.moments.random() < 0.5:
                content = content[: self.moments.randrange(len(content))]
            else:
                content[self.moments.randrange(len(content) // 2)] ^= 255
            newest.write_bytes(content)
            same += self.finish("train", self.out) == 0 and self.same("train")
        passed = len(self.said("is damaged and is not used")) - before
        return {
            "fault": "newest checkpoint truncated or edited",
            "count": count,
            "passed_over": passed,
            "identical": same,
        }

    def full_disk(self, count: int) -> dict[str, Any] | None:
        """Fill the disk at a random point of each stage, then make room."""
        said = same = 0
        disk = self.root / "disk"
        disk.mkdir()
        for i in range(count):
            command = list(FOLDERS)[i % 3]
            if subprocess.run(
                ["mount", "-t", "tmpfs", "dsno", disk], capture_output=True
            ).returncode:
                return None
            try:
                out = disk / "run"
                self.fresh(command, out)
                used = sum(p.stat().st_size for p in disk.rglob("*") if p.is_file()) // 1024
                need = sum(
                    p.stat().st_size
                    for p in (self.whole / FOLDERS[command]).rglob("*")
                    if p.is_file()
                )
                room = used + self.moments.randrange(40, max(need // 1024, 80)) + 100
                subprocess.run(["mount", "-o", f"remount,size={room}k", disk], check=True)
                before = len(self.said("The disk is full"))
                code = self.finish(command, out)
                told = len(self.said("The disk is full")) - before
                said += (code == 1 and told == 1) or code == 0
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
                done = self.finish(command, out) == 0
                name = FOLDERS[command]
                same += done and contents(out / name) == contents(self.whole / name)
            finally:
                subprocess.run(["umount", disk], check=True)
        return {"fault": "disk full", "count": count, "said_or_fitted": said, "identical": same}

    def launched(self, count: int) -> dict[str, Any]:
        """Kill one of two launched processes that collect."""
        same = 0
        for _ in range(count):
            folder = self.fresh("collect")
            launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
            launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
            job = ["-m", "dsno", "collect", "digits", *RECIPE, "--out", str(self.out)]
            goal = self.moments.randrange(1, 12)
            with subprocess.Popen(
                [sys.executable, *launcher, *job], stderr=subprocess.DEVNULL
            ) as process:
                while process.poll() is None and len(files(folder, "shard-*.json")) < goal:
                    time.sleep(0.001)
                workers = subprocess.run(
                    ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
                ).stdout.split()
                if workers:
                    os.kill(int(self.moments.choice(workers)), signal.SIGKILL)
            if load_manifest(folder).missing:
                same += self.finish("collect", self.out) == 0 and self.same("collect")
            else:
                same += self.same("collect")
        return {"fault": "collect: SIGKILL of one of 2 launched", "count": count, "identical": same}


def quietly(arguments: list[str]) -> int:
    with open(os.devnull, "w") as nothing:
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = nothing
        try:
            return command_line(arguments)
        finally:
            sys.stdout, sys.stderr = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="faults of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    n = arguments.count
    with tempfile.TemporaryDirectory() as root:
        campaign = Campaign(Path(root), arguments.seed)
        kill, ask = signal.SIGKILL, signal.SIGTERM
        plans: list[Callable[[], dict[str, Any] | None]] = [
            lambda: campaign.stop("collect", kill, n),
            lambda: campaign.stop("collect", kill, n, PARTS["collect"]),
            lambda: campaign.stop("collect", ask, n),
            lambda: campaign.stop("teacher", kill, n),
            lambda: campaign.stop("train", kill, n),
            lambda: campaign.stop("train", kill, n, PARTS["train"]),
            lambda: campaign.stop("train", ask, n),
            lambda: campaign.damaged_checkpoint(n // 4),
            *(
                lambda kind=kind: campaign.damage(kind, n)
                for kind in ("bit flipped", "truncated", "missing", "foreign")
            ),
            lambda: campaign.full_disk(n // 4),
            lambda: campaign.launched(max(n // 8, 1)),
        ]
        rows = []
        for plan in plans:
            start = time.monotonic()
            row = plan() or {"fault": "disk full", "count": 0, "left_out": "not root"}
            rows.append({**row, "seconds": round(time.monotonic() - start)})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        command = shlex.join(["python", *sys.argv])
        write_json(arguments.out, {"command": command, "environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
