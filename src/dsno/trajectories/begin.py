"""Begin an import of trajectories, or go on with an interrupted one."""

from __future__ import annotations

import dataclasses

from dsno.support.console import say
from dsno.support.storage import StorageDir
from dsno.trajectories.foreign import another_recipe, settings
from dsno.trajectories.manifest import (
    Manifest,
    forget,
    has_manifest,
    load_manifest,
    save_manifest,
    shard_name,
)
from dsno.trajectories.shards import damaged_shards


def begin(storage: StorageDir, wanted: Manifest) -> Manifest:
    """What an interrupted import of the same trajectories left, else a new start.

    Args:
        storage: where the shards go.
        wanted: what is imported, `shards` empty.

    Raises:
        InputError: if the folder holds other trajectories.
    """
    if not has_manifest(storage):
        save_manifest(storage, wanted)
        return wanted
    found = load_manifest(storage)
    if dataclasses.replace(found, shards=()) != wanted:
        raise another_recipe(storage, found, settings(wanted))
    bad = damaged_shards(storage, found)
    for index, complaint in bad.items():
        say(f"{storage.at(shard_name(index))} {complaint}; importing it again.")
    return forget(storage, bad) if bad else found
