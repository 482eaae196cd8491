"""What is installed and on which machine, for a bug report; PyTorch is not imported for it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path

from dsno.support.cache import cache_folder
from dsno.support.version import __version__

LIBRARIES = ("torch", "diffusers", "accelerate", "safetensors", "numpy", "pydantic")
EXTRAS = ("datasets", "transformers", "ndf", "gradio")
"""Of `dsno[data]`, `dsno[text]`, `dsno[imagenet]` and `dsno[app]`."""
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "DSNO_CACHE", "HF_HOME", "HF_HUB_OFFLINE")
DRIVER_SECONDS = 5.0
"""How long a GPU's driver may take to answer."""


def installation() -> dict[str, str]:
    """Versions, build, machine and settings by name, each as one line."""
    found = {
        "dsno": f"{__version__} ({Path(__file__).resolve().parents[1]})",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
    }
    for name in (*LIBRARIES, *EXTRAS):
        found[name] = _version(name)
    return {
        **found,
        "torch build": _torch_build(),
        "CPU cores": str(os.cpu_count() or "unknown"),
        "memory": _memory(),
        "GPUs": _gpus(),
        "cache": str(cache_folder()),
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch_build() -> str:
    """What PyTorch was built for, from the file it keeps that in."""
    try:
        spec = importlib.util.find_spec("torch")
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except (AssertionError, OSError, SyntaxError, ValueError):
        return "unknown"
    values: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name):
                values[target.id] = node.value.value
    built = [f"{label} {values[key]}" for key, label in BUILDS.items() if values.get(key)]
    return ", ".join(built) or "CPU"


BUILDS = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return "unknown"
    return f"{size / 2**30:.1f} GiB"


def _gpus() -> str:
    """What NVIDIA's driver lists."""
    fields = "name,memory.total,driver_version"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True
        )
    except FileNotFoundError:
        return "none found (no nvidia-smi)"
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown (nvidia-smi: {type(error).__name__})"
    return "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip()) or "none"
