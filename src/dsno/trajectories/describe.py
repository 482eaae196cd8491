"""What a folder of trajectories holds, from its manifest alone; PyTorch is not imported for it."""

from __future__ import annotations

from typing import Any

from dsno.support.storage import StorageDir
from dsno.trajectories.manifest import load_manifest


def values(storage: StorageDir) -> dict[str, Any]:
    """What a folder of trajectories holds, for programs: of `count` and `shard_count` in all.

    Raises:
        InputError: if there is no manifest, or none that can be read.
    """
    m = load_manifest(storage)
    return {
        "folder": str(storage),
        "trajectories": sum(shard.count for shard in m.shards),
        "count": m.count,
        "shards": len(m.shards),
        "shard_count": m.shard_count,
        "shard_size": m.shard_size,
        "bytes": sum(shard.bytes for shard in m.shards),
        "sample_shape": m.sample_shape,
        "dtype": m.dtype,
        "times": m.times,
        "solver": m.solver,
        "seed": m.seed,
        "num_classes": m.num_classes,
        "guidance_scale": m.guidance_scale,
        "prompts": m.prompts,
        "recipe": m.tag,
        "missing": m.missing,
    }


def describe(storage: StorageDir) -> dict[str, str]:
    """What a folder of trajectories holds, for people.

    Raises:
        InputError: as `values`.
    """
    m = load_manifest(storage)
    made, size = sum(s.count for s in m.shards), sum(s.bytes for s in m.shards)
    solver = m.solver
    found = {
        "folder": str(storage),
        "trajectories": f"{made:,} of {m.count:,}",
        "shards": f"{len(m.shards):,} of {m.shard_count:,}, of {m.shard_size:,} trajectories",
        "bytes": f"{size:,}" + (f", {size / made:,.0f} a trajectory" if made else ""),
        "samples": f"{' x '.join(map(str, m.sample_shape))}, {m.dtype}",
        "times": ", ".join(f"{t:.4g}" for t in m.times),
        "solver": " ".join(f"{key}={solver[key]}" for key in solver),
        "seed": str(m.seed),
        "classes": str(m.num_classes or "none"),
        "guidance": str(m.guidance_scale or "none")
        + (", by a version that clipped first, if the teacher clips" * m.may_be_clipped_first),
        "prompts": f"{m.prompts:,}" if m.prompts else "none",
        "recipe": m.tag,
    }
    if m.missing:
        found["not made yet"] = spans(m.missing)
    return found


def spans(indices: list[int]) -> str:
    """Numbers as ranges such as `0:3 7:8`, as `--shard-range` takes them; the first eight."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] += 1
        else:
            ranges.append([index, index + 1])
    more = f" and {len(ranges) - 8:,} more" if len(ranges) > 8 else ""
    return " ".join(f"{a}:{b}" for a, b in ranges[:8]) + more
