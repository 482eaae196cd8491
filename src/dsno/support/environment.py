"""What numbers depend on: versions and the machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import resource
import sys
from typing import Any

import torch

from dsno.support import distributed
from dsno.support.version import __version__


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "dsno": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": importlib.metadata.version("diffusers"),
    }


def environment() -> dict[str, Any]:
    """Versions and machine, by name."""
    return {
        **versions(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": distributed.device_name(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def peak_memory(device: torch.device) -> int:
    """Most memory used so far, in bytes: the device's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
