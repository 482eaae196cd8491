"""Hub repositories as local folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsno.support.errors import InputError

HALF_PRECISION = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*")
"""Patterns of second copies of weights: whole files, shards, and their indices."""


def looks_like_hub_id(source: str) -> bool:
    """Whether a name that is no local path could be `owner/name` on the Hub."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def download(
    name: str,
    *,
    allow: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    **options: Any,
) -> Path:
    """The local copy of a Hub repository, downloaded if it is not in the cache.

    Args:
        name: `owner/name`.
        allow: patterns of the files wanted; all if None.
        ignore: patterns of files not wanted.
        options: passed to `huggingface_hub.snapshot_download` (`revision`, `token`, ...).

    Raises:
        InputError: if it is not there or cannot be reached.
    """
    from huggingface_hub import snapshot_download  # seconds
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=None if allow is None else list(allow),
                ignore_patterns=None if ignore is None else list(ignore),
                **options,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"There is no local folder {name}, and it cannot be downloaded from the Hub "
            f"({type(error).__name__}); check the name or the connection."
        ) from None


@dataclass
class Upload:
    """Where a model's folder is uploaded to, and how.

    Attributes:
        name: `owner/name`; once it is created, as the Hub calls it.
        commit_message: of the upload.
        private: whether a new repository is; as its owner's usually are if None.
        token: of the user; the one that `hf auth login` stored if None.
        create_pr: propose a change instead of making it.
    """

    name: str
    commit_message: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    create_pr: bool = False

    def create(self) -> None:
        """Make the repository if there is none.

        Raises:
            InputError: if it cannot be made.
        """
        from huggingface_hub import create_repo

        with self._reached():
            made = create_repo(self.name, private=self.private, token=self.token, exist_ok=True)
        self.name = str(made.repo_id)

    def read_text(self, file: str) -> str | None:
        """A text file of the repository; None if it has none.

        Raises:
            InputError: if it cannot be read.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with self._reached():
            try:
                path = hf_hub_download(self.name, file, token=self.token)
            except LocalEntryNotFoundError:  # the Hub was not reached
                raise
            except EntryNotFoundError:
                return None
            return Path(path).read_text(encoding="utf-8", errors="replace")

    def send(self, folder: Path) -> Any:
        """Upload a folder's files; return the library's `CommitInfo`.

        Raises:
            InputError: if they cannot be uploaded.
        """
        from huggingface_hub import upload_folder

        with self._reached():
            return upload_folder(
                repo_id=self.name,
                folder_path=folder,
                token=self.token,
                commit_message=self.commit_message,
                create_pr=self.create_pr,
            )

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise InputError(
                f"The model cannot be uploaded to {self.name} on the Hub ({type(error).__name__}); "
                "log in with `hf auth login` or give token, and check the name and the connection."
            ) from None
