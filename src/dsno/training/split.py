"""How the rows of a step's batch are divided among processes and micro-batches."""

from __future__ import annotations

from dsno.support.errors import InputError


def micro_batches(
    batch_size: int, *, accumulation: int, rank: int, world_size: int, replicas: int = 1
) -> list[range]:
    """The rows of the batch that a process computes, a range for each micro-batch.

    Args:
        batch_size: of a step, over all processes.
        accumulation: micro-batches of each process.
        rank: of the process.
        world_size: processes.
        replicas: of the network in each process; one after the other they get a range each.

    Raises:
        InputError: if the batch does not divide evenly.
    """
    own = accumulation * replicas
    pieces = own * world_size
    size, rest = divmod(batch_size, pieces)
    if rest:
        among = f" x {replicas} cpu_replicas" if replicas > 1 else ""
        raise InputError(
            f"A batch of {batch_size} does not divide into {world_size} processes x "
            f"{accumulation} accumulation{among}; choose a batch_size that is a multiple of "
            f"{pieces}."
        )
    first = rank * own * size
    return [range(first + i * size, first + (i + 1) * size) for i in range(own)]
