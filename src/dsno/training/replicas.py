"""Replicas of a network in one process, so that a step of a small one uses several cores of a CPU.

Each computes its own part of every micro-batch, with one thread, and their gradients are added in
order. So a step gives the same bits whether the replicas run side by side or one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsno.recipes.schema import Optimisation
from dsno.support import distributed
from dsno.support.threads import Workers, with_same_weights


def replicas_of(options: Optimisation, device: torch.device) -> int:
    """How many replicas this process has: the recipe's number, where it counts.

    Several processes share a batch among them; compiled code and sharded weights have one owner.
    """
    is_alone = device.type == "cpu" and distributed.world_size() == 1
    return options.cpu_replicas if is_alone and not (options.compile or options.shard) else 1


class Replicas:
    """A module and copies of it with the same weights.

    Args:
        module: the first; the optimiser is its.
        count: how many there are with it.

    Attributes:
        modules: all of them.
    """

    def __init__(self, module: nn.Module, count: int) -> None:
        self.modules = [module, *(with_same_weights(module) for _ in range(count - 1))]
        self._may_run_together: bool | None = None if count > 1 else False

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.modules)

    def compute(
        self,
        work: Callable[[int], Tensor],
        seed: Callable[[int], None],
        workers: Workers,
    ) -> list[Tensor]:
        """What `work` makes of the number of each replica, in their order.

        The first time they run one after the other. If a forward pass draws random numbers
        (dropout) or changes a buffer (batch normalisation), they do so ever after, as its result
        depends on what ran before.

        Args:
            work: with a replica's number; may use that replica alone.
            seed: sets torch's generator for a replica.
            workers: threads to run them.
        """
        numbers = range(self.count)
        if self._may_run_together:
            return workers.map(work, numbers)
        found, is_free = [], True
        for number in numbers:
            seed(number)
            before = self._traces() if self._may_run_together is None else None
            found.append(work(number))
            is_free &= before is not None and _are_equal(before, self._traces())
        self._may_run_together = is_free
        return found

    def _traces(self) -> tuple[Tensor, list[int]]:
        """What a forward pass may leave behind: numbers drawn and buffers changed."""
        return torch.get_rng_state(), [b._version for b in self.modules[0].buffers()]

    def add_gradients(self) -> None:
        """Add those of the others to those of the first, in order, and forget them."""
        own = list(self.modules[0].parameters())
        for other in self.modules[1:]:
            sums, terms = [], []
            for weight, twin in zip(own, other.parameters(), strict=True):
                if weight.grad is None:
                    weight.grad = twin.grad
                elif twin.grad is not None:
                    sums.append(weight.grad)
                    terms.append(twin.grad)
                twin.grad = None
            if sums:
                torch._foreach_add_(sums, terms)


def _are_equal(a: tuple[Tensor, list[int]], b: tuple[Tensor, list[int]]) -> bool:
    return torch.equal(a[0], b[0]) and a[1] == b[1]
