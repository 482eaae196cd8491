"""Distil your own network: an adapter of about twenty lines.

    dsno import examples/own_teacher.py --out my-teacher
    dsno --adapter examples/own_teacher.py run distill teacher.source=my-teacher

The network here is a toy with random weights; put your own class and checkpoint in its place.
"""

import torch
from torch import nn

from dsno import Denoiser
from dsno.backbones.registry import register
from dsno.diffusion.schedules import RectifiedFlowSchedule


class MyNet(nn.Module):
    """Your network: forward(x, t) -> prediction, with t as you trained it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.inlet = nn.Conv2d(1, width, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.outlet = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.inlet(x) + self.time(t[:, None] / 1000)[:, :, None, None]
        for block in self.blocks:
            h = h + block(nn.functional.silu(h))
        return self.outlet(nn.functional.silu(h))


# ---- the adapter ---------------------------------------------------------------------------
# Make the class known: how to get its constructor's arguments, where to mix time, and which layer
# is its last one, for student.lift=readout.
register(MyNet, config=lambda net: {"width": net.width}, sites=("blocks.*",), readout="outlet")


def teacher() -> Denoiser:
    """What `dsno import` asks for: your network, and what it means."""
    torch.manual_seed(0)
    net = MyNet(
        width=16
    )  # ... net.load_state_dict(safetensors.torch.load_file("mine.safetensors"))
    return Denoiser(
        net,
        RectifiedFlowSchedule(),  # or CosineSchedule, BetaSchedule, EDMSchedule
        prediction_type="flow",  # or epsilon, v_prediction, sample, edm
        sample_shape=(1, 8, 8),
        time_input="time",  # c_noise: here 1000 t
    )
