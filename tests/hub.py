"""The Hub, as a folder: downloads by the library's own patterns, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.utils import filter_repo_objects


class Hub:
    """`snapshot_download` of one repository, which keeps the options it was given."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.asked: list[dict[str, Any]] = []

    def __call__(
        self, name: str, *, allow_patterns: Any, ignore_patterns: Any, **options: Any
    ) -> str:
        """Copy what the patterns ask for into the cache, beside what is there."""
        self.asked.append(options)
        found = [str(p.relative_to(self.repository)) for p in self.repository.rglob("*.*")]
        for file in filter_repo_objects(
            found, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / file, self.cache / file)
        return str(self.cache)

    @property
    def files(self) -> list[str]:
        """What was downloaded."""
        return sorted(str(p.relative_to(self.cache)) for p in self.cache.rglob("*.*"))
