"""Where things are kept that can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "DSNO_CACHE"


def cache_folder() -> Path:
    """`$DSNO_CACHE`, else `dsno` in the user's folder of caches; it may not exist yet."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsno"
