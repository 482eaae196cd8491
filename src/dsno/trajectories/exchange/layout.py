"""What every layout of an export can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dsno.trajectories.exchange.about import About
from dsno.trajectories.exchange.state_arrays import Arrays
from dsno.trajectories.manifest import Shard
from dsno.trajectories.prompts import Prompts


@dataclass(frozen=True)
class Part:
    """The trajectories of one shard: `items`, and their arrays."""

    items: range
    arrays: Arrays


class Layout(ABC):
    """A layout of an export: names of its files, and how each is written and read.

    Attributes:
        name: as `--to` takes it.
        is_one_file: whether all shards go into one file, not each into its own.
        dtypes: of states, that its readers take.
    """

    name: ClassVar[str]
    is_one_file: ClassVar[bool] = False
    dtypes: ClassVar[tuple[str, ...]] = ("float16", "float32", "float64")

    def refusal(self, about: About) -> str:
        """Why it cannot express such trajectories, to follow "cannot hold"; empty if it can."""
        return ""

    @abstractmethod
    def file(self, index: int, count: int) -> str:
        """Name of file `index` of `count`."""

    @abstractmethod
    def size(self, about: About, count: int, prompts: Prompts | None) -> int:
        """Bytes that a file of so many trajectories takes at most."""

    @abstractmethod
    def write(
        self, path: Path, about: About, parts: Iterable[Part], prompts: Prompts | None
    ) -> None:
        """Write a file of some shards, in their order."""

    @abstractmethod
    def read(self, path: Path, about: About, items: range, prompts: Prompts | None) -> Arrays:
        """The arrays of some trajectories of a file; of one with one shard those of all.

        Raises:
            InputError: one sentence without the file's name, if it holds anything else; the names
                of what it holds are the sentence's subject.
        """

    def extras(self, about: About, shards: Sequence[Shard]) -> dict[str, str]:
        """Names and texts of what else its readers need."""
        return {}
