"""One-step generators from diffusion models by operator learning (DSNO, arXiv 2211.13449)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsno.support.version import __version__

if TYPE_CHECKING:
    from dsno.diffusion.denoisers import Denoiser
    from dsno.diffusion.solvers import solve
    from dsno.operator.dsno import DSNO
    from dsno.operator.lift import LiftConfig
    from dsno.pipeline import DSNOModel, DSNOPipeline

__all__ = ["DSNO", "DSNOModel", "DSNOPipeline", "Denoiser", "LiftConfig", "__version__", "solve"]

_HOMES = {
    "DSNO": "dsno.operator.dsno",
    "DSNOModel": "dsno.pipeline",
    "DSNOPipeline": "dsno.pipeline",
    "Denoiser": "dsno.diffusion.denoisers",
    "LiftConfig": "dsno.operator.lift",
    "solve": "dsno.diffusion.solvers.solution",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: torch and diffusers cost seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dsno' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
