"""Trajectories of another recipe than the one at hand: the refusal, which says how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsno.support.differences import changes
from dsno.support.errors import InputError
from dsno.support.storage import StorageDir
from dsno.trajectories.manifest import Manifest

SLICES, TIMES = "collect.slices", "times"


def settings(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says of the recipe that made it, by the recipe's keys, and of its teacher."""
    return {
        "seed": manifest.seed,
        "collect.count": manifest.count,
        "collect.shard_size": manifest.shard_size,
        SLICES: len(manifest.times),
        "collect.dtype": manifest.dtype,
        "collect.solver": manifest.solver["method"],
        "collect.steps": manifest.solver["steps"],
        "collect.spacing": manifest.solver["spacing"],
        "collect.precision": manifest.precision,
        "collect.guidance_scale": manifest.guidance_scale,
        "prompts": manifest.prompts,
        "shape of a sample": manifest.sample_shape,
        "classes": manifest.num_classes,
        "checksum of the source": manifest.solver.get("imported"),
        TIMES: ", ".join(f"{time:.4g}" for time in manifest.times),
    }


def another_recipe(
    storage: StorageDir,
    found: Manifest,
    wanted: Mapping[str, Any],
    recorded: Sequence[str] = (),
) -> InputError:
    """The refusal of trajectories that another recipe made.

    Args:
        storage: where they are.
        found: their manifest.
        wanted: those of `settings` that are known of the recipe at hand.
        recorded: how the two recipes differ, if that is recorded.
    """
    there = settings(found)
    common = {key for key in there if key in wanted}
    if there[SLICES] != wanted[SLICES]:
        common -= {TIMES}  # of course they differ too
    differing = recorded or changes(
        {key: there[key] for key in common}, {key: wanted[key] for key in common}
    )
    what = "; ".join(differing) or "the teacher, or a key that is not stored with them"
    return InputError(
        f"{storage} holds trajectories of another recipe ({what}); give another folder or delete "
        "it."
    )
