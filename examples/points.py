"""One evaluation against an exact flow, on points in the plane.

    python examples/points.py --out points.png

The data are four normal distributions at the corners of a square. Their coordinates are
independent, so the flow of the probability-flow ODE is known exactly, coordinate by coordinate: it
keeps quantiles. A small network is trained to give the flow at four times from the noise alone.
"""

import argparse

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from dsno import DSNO, Denoiser, LiftConfig
from dsno.diffusion import CosineSchedule, GaussianMixture
from dsno.diffusion.analytic import mixture_flow_1d

SCHEDULE = CosineSchedule()
COORDINATE = GaussianMixture(torch.tensor([-1.0, 1.0]), torch.tensor([0.15, 0.15]), SCHEDULE)


class Net(nn.Module):
    """What `dsno` asks of a network: forward(x, t) -> shaped like x."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.inlet = nn.Linear(3, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.outlet = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.inlet(torch.cat([x, t[:, None] / 1000], 1))
        for block in self.blocks:
            h = h + block(nn.functional.silu(h))
        return self.outlet(nn.functional.silu(h))


def exact_flow(noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """States (n, M, 2) at times (M,) of the flow that starts from noise (n, 2) at t = 1."""
    one = torch.ones((), dtype=torch.float64)
    states = [mixture_flow_1d(COORDINATE, noise.flatten(), one, t).view_as(noise) for t in times]
    return torch.stack(states, 1)


def train(steps: int, count: int = 4096, seed: int = 0) -> tuple[DSNO, float]:
    """An operator trained on `count` trajectories, and how far it is from the exact flow.

    The distance is the mean over the four times and over noises it has not seen.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    denoiser = Denoiser(Net(), SCHEDULE, prediction_type="sample", sample_shape=(2,))
    operator = DSNO.from_teacher(denoiser, LiftConfig(["blocks.*"], slices=4, modes=2))
    noise = torch.randn(count, 2, generator=generator)
    states = exact_flow(noise, operator.times).float()
    optimiser = torch.optim.Adam(operator.parameters(), 1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(noise), (256,), generator=generator)
        loss = (operator(noise[rows]) - states[rows]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    new = torch.randn(512, 2, generator=generator)
    with torch.no_grad():
        off = operator(new) - exact_flow(new, operator.times)
    return operator, float(off.norm(dim=-1).mean())


def draw(operator: DSNO, seed: int = 1) -> Figure:
    """The exact flow as lines, what one evaluation gives as dots, and many samples beside."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2000, 2, generator=generator)
    with torch.no_grad():
        states = operator(noise)
    lines = exact_flow(noise[:60], torch.linspace(1, 0, 25, dtype=torch.float64))
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for line in lines:
        left.plot(line[:, 0], line[:, 1], color="#999999", lw=0.9, zorder=1)
    colours = ("#9ecae1", "#6baed6", "#3182bd", "#D55E00")
    for m, (t, colour) in enumerate(zip(operator.times.tolist(), colours, strict=True)):
        x, y = states[: len(lines), m].T
        left.scatter(x, y, s=13, color=colour, label=f"operator, t = {t:g}", zorder=2)
    left.set_title("exact flow (lines), one evaluation (dots)", fontsize=10)
    left.legend(fontsize=8, loc="upper left")
    right.scatter(*noise.T, s=2, color="#CCCCCC", label="noise")
    right.scatter(*states[:, -1].T, s=2, color=colours[-1], label="samples")
    right.set_title("2,000 samples", fontsize=10)
    right.legend(fontsize=8, loc="upper left", markerscale=4)
    for axes in (left, right):
        axes.set_aspect("equal")
        axes.set_xlim(-3, 3)
        axes.set_ylim(-3, 3)
    return figure


def main() -> None:
    """Train, say how near it came, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", default="points.png")
    given = parser.parse_args()
    operator, distance = train(given.steps)
    print(f"mean distance from the exact flow after {given.steps} steps: {distance:.3f}")
    draw(operator).savefig(given.out, dpi=130)


if __name__ == "__main__":
    main()
