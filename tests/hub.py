"""The Hub, as a folder: downloads by the library's own patterns, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import RepoUrl
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
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


class Site:
    """The Hub with all of its repositories, each a folder; whoever is logged in may write."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.is_logged_in = root, True
        self.commits: list[dict[str, Any]] = []
        for name in ("create_repo", "upload_folder", "hf_hub_download", "snapshot_download"):
            patch.setattr(f"huggingface_hub.{name}", getattr(self, name))

    def create_repo(self, name: str, *, private: Any, token: Any, exist_ok: bool) -> RepoUrl:
        """A name without an owner is the user's."""
        assert exist_ok
        if not self.is_logged_in and token is None:
            response: Any = SimpleNamespace(headers={}, request=None)
            raise HfHubHTTPError("401 Client Error", response=response)
        full = name if "/" in name else f"user/{name}"
        (self.root / full).mkdir(parents=True, exist_ok=True)
        self.commits.append({"private": private})
        return RepoUrl(f"https://huggingface.co/{full}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        """Files of the same name are replaced, others stay."""
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        self.commits.append(options)
        return f"commit {len(self.commits)}"

    def hf_hub_download(self, name: str, file: str, *, token: Any) -> str:
        """The file itself."""
        path = self.root / name / file
        if not path.is_file():
            raise EntryNotFoundError("404 Client Error")
        return str(path)

    def snapshot_download(self, name: str, **options: Any) -> str:
        """A copy of what the patterns ask for."""
        return Hub(self.root / name, self.root / "cache" / name)(name, **options)
