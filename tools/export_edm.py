"""Export a network of EDM (github.com/NVlabs/edm) to files that hold no code.

    cd edm                      # your own checkout of EDM
    python .../export_edm.py network-snapshot.pkl OUT_FOLDER

writes OUT_FOLDER/network.json and OUT_FOLDER/network.safetensors, which `dsno import OUT_FOLDER`
reads. It needs torch, safetensors and that checkout, not dsno.

EDM's snapshots are pickles: loading one RUNS CODE that is stored in it. This script does load it,
so give it only files from people you trust.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

NETWORKS = ("SongUNet", "DhariwalUNet")


class ExportError(Exception):
    """What cannot be exported, in one sentence."""


def finite(value: Any) -> float | None:
    """A number for JSON, which knows no infinity: None stands for it."""
    return float(value) if math.isfinite(value) else None


def describe(net: Any) -> dict[str, Any]:
    """What network.json says of an `EDMPrecond`.

    Raises:
        ExportError: for another preconditioning or inner network, or one that does not know the
            arguments it was built with.
    """
    precond, inner = type(net).__name__, type(getattr(net, "model", None)).__name__
    if precond != "EDMPrecond" or inner not in NETWORKS:
        raise ExportError(
            f"Only an EDMPrecond around a {' or '.join(NETWORKS)} can be exported, not a "
            f"{precond} around a {inner}."
        )
    if getattr(net.model, "init_args", ()) or not hasattr(net.model, "init_kwargs"):
        raise ExportError(
            f"The {inner} does not know the keyword arguments it was built with; export the "
            "network from a snapshot that EDM's own code saved."
        )
    return {
        "format": 1,
        "precond": precond,
        "sigma_min": finite(net.sigma_min),
        "sigma_max": finite(net.sigma_max),
        "sigma_data": finite(net.sigma_data),
        "network": {"class": inner, "arguments": dict(net.model.init_kwargs)},
    }


def export(net: Any, folder: Path) -> None:
    """Write an `EDMPrecond` to a folder.

    The description comes last, so a folder that has one is whole.

    Raises:
        ExportError: see `describe`.
    """
    text = json.dumps(describe(net), indent=1, allow_nan=False) + "\n"
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    description, weights = folder / "network.json", folder / "network.safetensors"
    description.unlink(missing_ok=True)  # it would describe other weights
    unfinished = folder / ".network.tmp"
    save_file(tensors, unfinished)
    unfinished.replace(weights)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(description)


def read_snapshot(path: Path) -> Any:
    """Unpickle a snapshot, which runs its code, and return its averaged network.

    Raises:
        ExportError: if it is missing, damaged, or no snapshot of EDM.
    """
    sys.path.insert(0, os.getcwd())  # the pickle imports EDM's torch_utils and dnnlib
    try:
        with path.open("rb") as file:
            data = pickle.load(file)
    except (ImportError, AttributeError) as error:
        raise ExportError(f"{error}: run this inside your checkout of EDM.") from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ExportError(f"{path} cannot be read ({error}); give EDM's snapshot.") from error
    if not isinstance(data, dict) or "ema" not in data:
        raise ExportError(f"{path} holds no averaged network ('ema'); give EDM's snapshot.")
    return data["ema"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("snapshot", type=Path, help="EDM's network-snapshot-*.pkl, which is run")
    parser.add_argument("folder", type=Path, help="the folder to write")
    given = parser.parse_args(arguments)
    print(f"Loading {given.snapshot}, which runs the code in it: trust its source.", flush=True)
    try:
        export(read_snapshot(given.snapshot), given.folder)
    except (ExportError, OSError) as error:
        print(f"export_edm: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {given.folder}; next: dsno import {given.folder} --out DIR")
    return 0


if __name__ == "__main__":
    sys.exit(main())
