"""One model trained by many processes: replicas or shards, precision, compilation, memory.

Accelerate gives the processes, autocast, loss scaling and trackers. Replicas (DDP) and shards (FSDP
2) are PyTorch's own: Accelerate offers no shards on CPUs, where all of this is tested.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import recursively_apply, send_to_device
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dsno.recipes.choices import Compilation
from dsno.support import distributed
from dsno.support.errors import InputError
from dsno.training.losses import Objective

FUSED = ("cpu", "cuda", "xpu", "mps")
# Whole tensors on process 0's side of the CPU, so that a checkpoint fits any number of processes.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Engine:
    """What carries a training step to the hardware.

    Args:
        mixed_precision: `no` (float32), `bf16` or `fp16` arithmetic; weights stay float32.
        shard: spread weights, gradients and optimiser state over the processes (FSDP 2) instead of
            keeping a replica in each.
        log_with: Accelerate's names of the trackers to log to.
        log_folder: where trackers that write files write.

    Raises:
        InputError: for a precision the device lacks.
    """

    def __init__(
        self,
        *,
        mixed_precision: str = "no",
        shard: bool = False,
        log_with: Sequence[str] = (),
        log_folder: Path | None = None,
    ) -> None:
        self.device = distributed.device()
        if mixed_precision == "fp16" and self.device.type == "cpu":
            raise InputError("fp16 needs a GPU; use mixed_precision bf16 or no on a CPU.")
        self.shard = shard
        self._replays = False
        # A recipe sets these, not the launcher's configuration, and teacher and student may differ.
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision=mixed_precision,
            dynamo_backend="no",
            log_with=list(log_with) or None,
            project_dir=None if log_folder is None else str(log_folder),
        )

    @property
    def scales_loss(self) -> bool:
        """Whether infinite gradients are part of the game (fp16's loss scaling skips the step)."""
        return self.accelerator.scaler is not None

    def spread(
        self, objective: Objective, others: Sequence[nn.Module], batch: Mapping[str, Any]
    ) -> nn.Module:
        """Replicate or shard `objective` over the processes; return what to call.

        `others` (an average of the weights) are sharded alike, or stay as they are. `batch` is any
        batch, to try which weights are used.
        """
        if self.shard:
            mesh = init_device_mesh(self.device.type, (distributed.world_size(),))
            for module in (objective, *others):
                _shard(module, mesh)
            return objective
        if distributed.world_size() == 1:
            return objective
        return DistributedDataParallel(
            objective,
            device_ids=None if self.device.type == "cpu" else [self.device],
            find_unused_parameters=objective.alternates
            or _has_unused(objective, batch, self.device),
        )

    def optimizer(
        self, groups: Sequence[Sequence[nn.Parameter]], **options: Any
    ) -> torch.optim.Optimizer:
        """AdamW of groups of weights, fused where the device can."""
        fused = self.device.type in FUSED
        return torch.optim.AdamW([{"params": list(g)} for g in groups], fused=fused, **options)

    def compile(self, network: nn.Module, how: Compilation) -> None:
        """Compile a network, if that is asked for; see the recipe's key."""
        if how == "reduce-overhead":
            network.compile(mode=how)
            self._replays = self.device.type == "cuda"
        elif how:
            network.compile()

    @contextlib.contextmanager
    def gradients(self, worker: nn.Module, last: bool) -> Iterator[None]:
        """Of one micro-batch: gradients are exchanged with the last one only."""
        if self._replays:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with self._exchanged(worker, last):
            yield
        if self._replays and not last:
            # A graph leaves its gradients where its next replay puts others, and autograd adds to
            # them there (pytorch/pytorch#169545).
            for weight in worker.parameters():
                if weight.grad is not None:
                    weight.grad = weight.grad.clone()

    @contextlib.contextmanager
    def _exchanged(self, worker: nn.Module, last: bool) -> Iterator[None]:
        if isinstance(worker, FSDPModule):
            worker.set_requires_gradient_sync(last)
            yield
        elif last or not isinstance(worker, DistributedDataParallel):
            yield
        else:
            with worker.no_sync():
                yield

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients, scaled if the precision needs that."""
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    def clip(self, limit: float, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip the gradient of each of the optimiser's groups; return the first's norm before."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(optimizer)
        norms = [nn.utils.clip_grad_norm_(g["params"], limit) for g in optimizer.param_groups]
        return norms[0].full_tensor() if isinstance(norms[0], DTensor) else norms[0]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights."""
        scaler = self.accelerator.scaler
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()

    # ------------------------------------------------------------------- weights, whole again

    def states(
        self, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """All that training has changed, in the same form for any number of processes."""
        scaler = self.accelerator.scaler
        return {
            "model": get_model_state_dict(model, options=WHOLE),
            "average": get_model_state_dict(average, options=WHOLE),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=WHOLE),
            "scaler": {} if scaler is None else scaler.state_dict(),
        }

    def load(
        self,
        saved: Mapping[str, Any],
        model: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Put back what `states` gave.

        Raises:
            ValueError, RuntimeError, ...: if it is of another model; part of it may be put back.
        """
        for name, module in (("model", model), ("average", average)):
            if saved[name].keys() != module.state_dict().keys():  # an empty one would pass
                raise ValueError(f"other weights in {name}")
        set_model_state_dict(model, saved["model"], options=WHOLE)
        set_model_state_dict(average, saved["average"], options=WHOLE)
        set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=WHOLE)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])

    def whole(self, template: nn.Module, module: nn.Module) -> nn.Module:
        """`module` with all of its weights in this process; `template` is it before `spread`."""
        if not self.shard:
            return module
        state = get_model_state_dict(module, options=WHOLE)
        if distributed.is_main():  # the others are given nothing
            template.load_state_dict(state)
        return template

    def template(self, model: nn.Module) -> nn.Module:
        """What `whole` needs: a copy on the CPU if the weights are to be sharded."""
        return copy.deepcopy(model).cpu() if self.shard else model


def _shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every block of a list of blocks, the innermost first, then the rest as one."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList | nn.ModuleDict)]
    for container in reversed(lists):
        for block in container.children():
            if any(True for _ in block.children()) and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _has_unused(objective: Objective, batch: Mapping[str, Any], device: torch.device) -> bool:
    """Whether some weights get no gradient, which DDP needs to know; tried on one row."""
    row = {k: recursively_apply(lambda t: t[:1], v) for k, v in batch.items()}
    loss, _ = objective(send_to_device(row, device))
    loss.backward()
    weights = [p for p in objective.parameters() if p.requires_grad]
    unused = any(p.grad is None for p in weights)
    objective.zero_grad(set_to_none=True)
    return unused


def checkpoint_activations(network: nn.Module) -> None:
    """Keep few activations for the backward pass and compute the others again.

    Raises:
        InputError: if the network does not offer it.
    """
    offers = getattr(network, "enable_gradient_checkpointing", None)
    if offers is None or not getattr(network, "_supports_gradient_checkpointing", True):
        raise InputError(
            f"{type(network).__name__} has no gradient checkpointing; set gradient_checkpointing "
            "to false, or use more accumulation for smaller batches."
        )
    offers()
