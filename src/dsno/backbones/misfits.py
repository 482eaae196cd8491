"""What does not fit between weights and a network, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable

NAMED = 3
"""Of each kind of misfit, by name; the others are counted."""


def mismatch_sentence(
    source: str, *, missing: Iterable[str], extra: Iterable[str], misshaped: Iterable[str]
) -> str:
    """What does not fit between weights and a network: the first three of each, and how many more.

    Empty if everything fits.
    """
    misfits = []
    for what, found in (("missing", missing), ("extra", extra), ("of another shape", misshaped)):
        names = sorted(found)
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            misfits.append(f"{what}: {', '.join(names[:NAMED])}{more}")
    if not misfits:
        return ""
    return (
        f"The weights in {source} do not fit the network ({'; '.join(misfits)}); "
        "check that they belong to this configuration."
    )
