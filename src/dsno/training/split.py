"""How the rows of a step's batch are divided among processes and micro-batches."""

from __future__ import annotations

from dsno.support.errors import InputError


def micro_batches(batch_size: int, *, accumulation: int, rank: int, world_size: int) -> list[range]:
    """The rows of the batch that a process computes, a range for each micro-batch.

    Args:
        batch_size: of a step, over all processes.
        accumulation: micro-batches of each process.
        rank: of the process.
        world_size: processes.

    Raises:
        InputError: if the batch does not divide evenly.
    """
    pieces = accumulation * world_size
    size, rest = divmod(batch_size, pieces)
    if rest:
        raise InputError(
            f"A batch of {batch_size} does not divide into {world_size} processes x "
            f"{accumulation} accumulation; choose a batch_size that is a multiple of {pieces}."
        )
    first = rank * accumulation * size
    return [range(first + i * size, first + (i + 1) * size) for i in range(accumulation)]
