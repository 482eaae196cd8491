"""The version of the code that runs, installed or not."""

from __future__ import annotations

__version__ = "0.1.0"
