"""The network of the paper's authors, from a copy of their public code in an ignored folder.

    git clone https://github.com/devzhk/DSNO-pytorch foreign/DSNO-pytorch

Nothing of theirs is in this repository: it has no licence. `dsno` networks of the same shape are
given their weights here, layer by layer in the order in which both run.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dsno.operator.dsno import DSNO
from dsno.operator.temporal import FourierTemporalConv

FOLDER = Path(__file__).parents[1] / "foreign" / "DSNO-pytorch"


def available() -> bool:
    """Whether their code is there."""
    return (FOLDER / "models" / "tddpmm.py").is_file()


def network(width: int, slices: int, blocks: int = 3) -> nn.Module:
    """Their CIFAR-10 network (configs/cifar10-dsno-t4.yaml) with another width."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    module: Any = importlib.import_module("models.tddpmm")
    model = {
        "nf": width,
        "temb_dim": 4 * width,
        "ch_mult": [1, 1, 1],
        "num_res_blocks": blocks,
        "attn_resolutions": [8, 16],
        "num_attn_heads": 1,
        "dropout": 0.2,
        "init_scale": 0.0,
        "nonlinearity": "swish",
        "resamp_with_conv": False,
        "resblock_type": "biggan",
        "conditional": True,
        "num_classes": 0,
        "logsnr_type": "inv_cos",
        "fourier_feature": False,
        "time_conv": True,
        "with_nin": False,
        "num_modes": 2,
        "pred_eps": False,
        "num_t": slices,
    }
    data = {"image_size": 32, "num_channels": 3}
    made: nn.Module = module.TDDPMm(
        SimpleNamespace(model=SimpleNamespace(**model), data=SimpleNamespace(**data))
    )
    return made


def _leaves(root: nn.Module, run: Any) -> list[nn.Module]:
    """The modules with weights of their own in the order of their first calls."""
    order: dict[int, nn.Module] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, _: order.setdefault(id(m), m) and None)
        for module in root.modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return list(order.values())


@torch.no_grad()
def give_weights(operator: DSNO, theirs: nn.Module, log_snr: Tensor) -> None:
    """Draw random weights for the authors' network and give `operator` the same."""
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        if parameter.ndim < 2:
            parameter.normal_(0, 0.1, generator=generator)
        elif parameter.ndim > 1:
            fan_in = parameter[0].numel() if parameter.ndim != 2 else parameter.shape[1]
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    noise = torch.zeros(1, *operator.sample_shape)
    sources = iter(_leaves(theirs, lambda: theirs(noise, log_snr)))
    targets = iter(_leaves(operator, lambda: operator(noise)))
    for target in targets:
        source: Any = next(sources)
        if isinstance(target, FourierTemporalConv):
            real, imag = source.weights1.permute(2, 0, 1, 3).unbind(-1)
            target.real.copy_(real)
            target.imag.copy_(imag)
            continue
        own: Any = target
        if not hasattr(source, "W"):
            own.weight.copy_(source.weight)
            own.bias.copy_(source.bias)
            continue
        # a product of (in, out); that of attention holds queries, keys and values
        parts = source.W.shape[1] // own.weight.shape[0]
        weights, biases = source.W.T.chunk(parts), source.b.chunk(parts)
        for weight, bias in zip(weights, biases, strict=True):
            own.weight.copy_(weight.reshape(own.weight.shape))
            own.bias.copy_(bias)
            own = next(targets) if weight is not weights[-1] else own
    assert next(sources, None) is None
