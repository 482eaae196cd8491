"""Methods that remember earlier steps: DPM-Solver++(2M) and UniPC."""

from __future__ import annotations

import math

from torch import Tensor

from dsno.diffusion.solvers.steps import Node, Step, Visit, jump


def dpm_solver_2m(x: Tensor, step: Step) -> Tensor:
    """Data prediction, extrapolated in log-SNR from two steps (arXiv 2211.01095, algorithm 2)."""
    denoised = step.denoise(x, step.start)
    end = _extrapolated(x, denoised, step)
    step.visits = [Visit(step.start, x, denoised)]
    return end


def unipc(x: Tensor, step: Step) -> Tensor:
    """UniPC-2, B2(h), data prediction: a predictor, and a corrector that costs no evaluation.

    The predictor is DPM-Solver++(2M)'s step. The evaluation at its end, which the next step needs
    in any case, first corrects the state there by one order; the next step starts from that.

    Source: Zhao et al., arXiv 2302.04867, algorithms 5 and 6.
    """
    denoised = step.denoise(x, step.start)
    if step.visits:
        x = _corrected(denoised, step)
    end = _extrapolated(x, denoised, step)
    step.visits = [*step.visits[-1:], Visit(step.start, x, denoised)]
    return end


def _extrapolated(x: Tensor, denoised: Tensor, step: Step) -> Tensor:
    """The step with D extrapolated from its start and the start before."""
    estimate = denoised
    if step.visits and not step.is_last:
        last = step.visits[-1]
        h = _between(step.start, step.end)
        h_last = _between(last.node, step.start)  # infinite from pure noise: weight 0
        weight = h / (2 * h_last)
        estimate = (1 + weight) * denoised - weight * last.denoised
    return jump(x, estimate, step.start, step.end)


def _corrected(denoised: Tensor, step: Step) -> Tensor:
    """The state at the step's start, stepped to again with the denoised estimate there known."""
    last = step.visits[-1]
    h = _between(last.node, step.start)
    if len(step.visits) == 1:
        estimate = (last.denoised + denoised) / 2
    else:
        before = step.visits[-2]
        h_last = _between(before.node, last.node)
        past, present = corrector_weights(h, h_last)
        estimate = last.denoised + present * (denoised - last.denoised)
        estimate += past * (before.denoised - last.denoised)
    return jump(last.state, estimate, last.node, step.start)


def corrector_weights(h: float, h_last: float) -> tuple[float, float]:
    """Weights of the differences of D, before and after the step, from D at its start.

    They make the step over h exact for D quadratic in half log-SNR, given D at -h_last, 0 and h.

    Args:
        h: length of the step in half log-SNR.
        h_last: of the step before; infinite if that started from pure noise, which then has
            weight 0.
    """
    first = math.expm1(-h)
    second = -first / h - 1
    third = -second / h - 0.5
    b1, b2 = second / first, 2 * third / first
    ratio = -h_last / h
    rho = (b1 - b2) / (1 - ratio)
    return rho / ratio, b1 - rho


def _between(start: Node, end: Node) -> float:
    return end.half_log_snr - start.half_log_snr
