"""Every method's convergence order, and the answers at chosen times, against exact flows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from scipy.integrate import quad
from torch import Tensor

from dsno.diffusion.analytic import Gaussian, GaussianMixture, mixture_flow_1d
from dsno.diffusion.schedules import SCHEDULES, BetaSchedule, CosineSchedule, NoiseSchedule
from dsno.diffusion.solvers import METHODS, evaluations, nodes, solve, step_times
from dsno.diffusion.solvers.multistep import corrector_weights
from dsno.diffusion.time_grids import SPACINGS, Spacing, time_grid
from dsno.support.errors import InputError

ONE = torch.ones((), dtype=torch.float64)
NOISE = torch.tensor([[1.2, -0.4], [-0.8, 1.7], [0.1, 0.3]], dtype=torch.float64)
ZERO_SNR = BetaSchedule(zero_terminal_snr=True)
CASES = {
    **{name: kind() for name, kind in SCHEDULES.items()},
    "mild cosine": CosineSchedule(-8.0, 8.0),
    "zero_terminal_snr": ZERO_SNR,
}
# A first step from (almost) no signal is (almost) infinitely long in log-SNR, so a multistep method
# in that variable reaches its order late.
LATE = {("dpm++2m", name) for name in ("cosine", "rectified_flow", "zero_terminal_snr")}
# With UniPC the error of that first step is of second order, and outlasts those of the others.
SECOND = {("unipc", "cosine"), ("unipc", "rectified_flow")}
LATE |= SECOND


def test_what_is_not_of_the_teachers_shape_is_refused() -> None:
    teacher = gaussian(CosineSchedule())
    for wrong in ((2,), (5, 1), (3, 5), (4, 2, 1), ()):
        for what in ("noise", "state"):
            with pytest.raises(InputError, match=rf"the {what} must be of shape \(batch, 2\), not"):
                solve(teacher, **{what: torch.zeros(wrong)})


def test_times_are_a_list_or_tensor_of_any_precision() -> None:
    teacher, state = gaussian(CosineSchedule()), torch.ones(3, 2)
    found = solve(teacher, start=0.1, state=state, times=torch.tensor([0.1, 0.0]))
    assert torch.equal(found.states[:, 0], state)  # 0.1 in float32 is more than 0.1
    listed = solve(teacher, start=0.1, state=state, times=[0.1, 0.0])
    assert torch.equal(listed.states, found.states)
    assert listed.times.tolist() == [0.1, 0.0]  # in float64, as they were given


def gaussian(schedule: NoiseSchedule) -> Gaussian:
    return Gaussian(torch.tensor([0.7, -0.3]), torch.tensor([0.5, 0.8]), schedule)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


methods = pytest.mark.parametrize("method", METHODS)
cases = pytest.mark.parametrize("name", CASES)


@methods
@cases
def test_every_method_converges_with_its_declared_order(method: str, name: str) -> None:
    teacher, end = gaussian(CASES[name]), times(0.2)
    exact = teacher.flow(NOISE * CASES[name].sigma(ONE), ONE, end[0])
    first = 512 if (method, name) in LATE else 32 if METHODS[method].order < 3 else 128
    counts = first, 2 * first, 4 * first
    errors = []
    for steps in counts:
        solved = solve(teacher, NOISE, end, method=method, steps=steps).states[:, 0]
        errors.append(float((solved - exact).abs().max()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    order = 2 if (method, name) in SECOND else METHODS[method].order
    assert -slope == pytest.approx(order, abs=0.25)


@methods
@cases
def test_solutions_reach_the_clean_end_of_the_exact_flow(method: str, name: str) -> None:
    """Through alpha(1) = 0 and into sigma = 0, where other forms of the ODE are 0/0."""
    teacher = gaussian(CASES[name])
    exact = teacher.flow(NOISE * CASES[name].sigma(ONE), ONE, 0 * ONE)
    for spacing in SPACINGS:
        solved = solve(teacher, NOISE, method=method, steps=200, spacing=spacing)
        limit = 0.06 if METHODS[method].order == 1 else 0.006
        assert (solved.states[:, 0] - exact).abs().max() < limit


@methods
@pytest.mark.parametrize("name", ["cosine", "betas", "edm", "rectified_flow"])
def test_all_methods_agree_with_the_quantile_flow_of_a_mixture(method: str, name: str) -> None:
    schedule = CASES[name]
    mixture = GaussianMixture(torch.tensor([[-1.0], [0.8]]), torch.tensor([[0.4], [0.3]]), schedule)
    noise = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None]
    asked = times(0.6, 0.3, 0)
    solution = solve(mixture, noise, asked, method=method, steps=256)
    for m, t in enumerate(asked):
        exact = mixture_flow_1d(mixture, noise[:, 0] * schedule.sigma(ONE), ONE, t)
        limit = 0.06 if METHODS[method].order == 1 else 4e-3
        assert (solution.states[:, m, 0] - exact).abs().max() < limit


@methods
@cases
def test_states_at_asked_times_are_those_of_separate_solves(method: str, name: str) -> None:
    """The grid is the same here, so asking for more must not change a bit of the path."""
    teacher, asked = gaussian(CASES[name]), times(0.75, 0.5, 0.25, 0)
    together = solve(teacher, NOISE, asked, method=method, steps=16)
    for m, t in enumerate(asked.tolist()):
        alone = solve(teacher, NOISE, times(t), method=method, steps=round(16 * (1 - t)))
        torch.testing.assert_close(together.states[:, m], alone.states[:, 0], atol=1e-12, rtol=0)


def test_ddim_is_the_written_out_recursion() -> None:
    schedule = CASES["cosine"]
    teacher, grid = gaussian(schedule), time_grid("quadratic", 9, schedule)
    x = NOISE * schedule.sigma(ONE)
    for s, t in zip(grid[:-1], grid[1:], strict=True):
        denoised = teacher(x, s)
        eps = (x - schedule.alpha(s) * denoised) / schedule.sigma(s)
        x = denoised if t == 0 else schedule.alpha(t) * denoised + schedule.sigma(t) * eps
    solved = solve(teacher, NOISE, method="ddim", steps=9, spacing="quadratic")
    torch.testing.assert_close(solved.states[:, 0], x)


def test_one_ddim_step_is_that_of_diffusers() -> None:
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(4)  # steps of 250
    schedule = BetaSchedule()
    teacher, x = gaussian(schedule), NOISE * schedule.sigma(ONE)
    alpha, sigma = schedule.alpha(ONE), schedule.sigma(ONE)
    eps = (x - alpha * teacher(x, ONE)) / sigma
    expected = scheduler.step(eps, 999, x).prev_sample
    solved = solve(teacher, NOISE, times(749 / 999), method="ddim", steps=1)
    torch.testing.assert_close(solved.states[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_dpm_solver_is_that_of_diffusers_over_a_whole_solve() -> None:
    scheduler = DPMSolverMultistepScheduler(
        final_sigmas_type="zero", timestep_spacing="linspace", lower_order_final=True
    )
    scheduler.set_timesteps(12)
    schedule = BetaSchedule()
    teacher, x = gaussian(schedule), NOISE.float() * float(schedule.sigma(ONE))
    for k in scheduler.timesteps:
        t = k.double() / 999
        eps = (x - schedule.alpha(t) * teacher(x, t)) / schedule.sigma(t)
        x = scheduler.step(eps.float(), k, x).prev_sample
    asked = torch.cat([scheduler.timesteps.double() / 999, times(0)])
    solved = solve(teacher, NOISE, asked, method="dpm++2m", steps=12)
    torch.testing.assert_close(solved.states[:, -1].float(), x, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_unipc_is_that_of_diffusers_over_a_whole_solve(steps: int) -> None:
    """Its coefficients are put in by hand, in double precision: it keeps them in single."""
    schedule, grid = BetaSchedule(), time_grid("uniform", steps, BetaSchedule())
    alphas, sigmas = schedule.alpha(grid), schedule.sigma(grid)
    scheduler = UniPCMultistepScheduler(
        solver_order=2, solver_type="bh2", prediction_type="sample", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.where(grid > 0, sigmas / alphas, 0)
    teacher, x = gaussian(schedule), NOISE * sigmas[0]
    for k, t in zip(scheduler.timesteps, grid, strict=False):
        x = scheduler.step(teacher(x, t), k, x).prev_sample
    solved = solve(teacher, NOISE, method="unipc", steps=steps)
    torch.testing.assert_close(solved.states[:, 0], x, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("h", "h_last"), [(0.3, 0.2), (1.5, 0.4), (0.01, 0.02), (0.7, math.inf)])
def test_the_corrector_integrates_the_parabola_through_three_estimates(
    h: float, h_last: float
) -> None:
    """The step is a mean of D over [0, h] with weight e^u; from pure noise, of a straight line."""
    past, present = corrector_weights(h, h_last)
    total = math.expm1(h)
    if h_last == math.inf:
        expected = quad(lambda u: u / h * math.exp(u), 0, h)[0] / total
        assert (past, present) == (0, pytest.approx(expected, rel=1e-9))
        return
    for power in (1, 2):  # a constant is right by construction
        expected = quad(lambda u, p=power: u**p * math.exp(u), 0, h)[0] / total
        got = past * (-h_last) ** power + present * h**power
        assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["cosine", "rectified_flow"])
@pytest.mark.parametrize("steps", [1, 2])
def test_solutions_of_one_and_two_evaluations_are_those_of_ddim(name: str, steps: int) -> None:
    """There is nothing to extrapolate from yet; the step into t = 0 is the denoised estimate."""
    found = [
        solve(gaussian(CASES[name]), NOISE, method=method, steps=steps).states
        for method in ("ddim", "dpm++2m", "unipc")
    ]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["ddim", "heun"])
@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_a_solution_in_two_pieces_is_that_of_the_whole_grid(method: str, name: str) -> None:
    """Of one-step methods, which remember nothing where the second piece starts."""
    teacher, options = gaussian(CASES[name]), {"method": method, "spacing": "quadratic"}
    middle = times(0.25)  # u = 1/2 of the quadratic grid
    whole = solve(teacher, NOISE, steps=8, **options)
    first = solve(teacher, NOISE, middle, steps=4, **options)
    rest = solve(teacher, start=0.25, state=first.states[:, 0], steps=4, **options)
    torch.testing.assert_close(rest.states, whole.states, atol=1e-12, rtol=1e-12)
    assert first.nfe + rest.nfe == whole.nfe


@methods
@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_a_solution_from_a_state_converges_to_the_exact_flow(method: str, name: str) -> None:
    teacher, start, asked = gaussian(CASES[name]), times(0.6)[0], times(0.6, 0.2)
    errors = []
    for steps in (32, 64):
        solved = solve(teacher, None, asked, start=0.6, state=NOISE, method=method, steps=steps)
        assert torch.equal(solved.states[:, 0], NOISE)
        assert solved.nfe == steps * METHODS[method].evaluations
        exact = teacher.flow(NOISE, start, asked[1])
        errors.append(float((solved.states[:, 1] - exact).abs().max()))
    assert errors[0] < 0.03
    assert errors[1] < errors[0] / 2 ** (METHODS[method].order - 0.3) + 1e-9


def test_a_state_at_time_one_is_the_scaled_noise() -> None:
    teacher = gaussian(CASES["edm"])
    state = NOISE * CASES["edm"].sigma(ONE)
    given, drawn = solve(teacher, state=state, steps=5), solve(teacher, NOISE, steps=5)
    assert torch.equal(given.states, drawn.states)


def test_times_may_come_in_any_order_and_repeat() -> None:
    teacher = gaussian(CASES["cosine"])
    falling = solve(teacher, NOISE, times(0.7, 0.2, 0), steps=9)
    mixed = solve(teacher, NOISE, times(0, 0.7, 0.2, 0.7), steps=9)
    assert torch.equal(mixed.states, falling.states[:, [2, 0, 1, 0]])
    assert mixed.times.tolist() == [0, 0.7, 0.2, 0.7]
    assert mixed.nfe == falling.nfe == 9


def test_nearly_equal_times_share_one_state() -> None:
    teacher = gaussian(CASES["cosine"])
    near = times(0.5 + 4e-7, 0.5, 1 - 5e-7, 5e-7, 0)
    solution = solve(teacher, NOISE, near, steps=8)
    assert torch.equal(solution.states[:, 0], solution.states[:, 1])
    assert torch.equal(solution.states[:, 3], solution.states[:, 4])
    assert torch.equal(solution.states[:, 2], NOISE * CASES["cosine"].sigma(ONE))
    exact = solve(teacher, NOISE, times(0.5, 0), steps=8).states
    torch.testing.assert_close(solution.states[:, [1, 4]], exact, atol=1e-5, rtol=0)


def test_times_a_little_further_apart_have_states_of_their_own() -> None:
    schedule, asked = CASES["mild cosine"], times(1, 1 - 1e-5, 0.5 + 1e-5, 0.5, 1e-5, 0)
    states = solve(gaussian(schedule), NOISE, asked, method="ddim", steps=8).states
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert not torch.equal(states[:, first], states[:, second])


@cases
def test_time_one_is_the_scaled_noise_and_costs_nothing(name: str) -> None:
    solution = solve(gaussian(CASES[name]), NOISE, times(1))
    assert solution.nfe == 0
    assert torch.equal(solution.states[:, 0], NOISE * CASES[name].sigma(ONE))


@methods
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_evaluations_are_counted_and_foretold(method: str, steps: int) -> None:
    calls = 0

    class Counted(Gaussian):
        def __call__(self, *args: object) -> Tensor:
            nonlocal calls
            calls += 1
            return super().__call__(*args)  # type: ignore[arg-type]

    teacher = Counted(torch.zeros(2), torch.ones(2), CASES["cosine"])
    solution = solve(teacher, NOISE, method=method, steps=steps)
    assert solution.nfe == calls == evaluations(method, steps)
    assert evaluations(method, steps) == 1 + (steps - 1) * METHODS[method].evaluations


@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_are_shared_in_proportion_and_end_at_the_asked_times(spacing: str) -> None:
    rule, asked = Spacing(spacing, CASES["cosine"]), times(0.9, 0.31, 0.3, 0)
    grid = step_times(asked, 40, rule)
    assert len(grid) == 41
    assert (grid[0], grid[-1]) == (1, 0)
    assert (grid.diff() < 0).all()
    where = torch.tensor([int((grid == t).nonzero()) for t in asked])
    counts = torch.cat([where[:1], where.diff()])
    places = rule.position(torch.cat([ONE[None], asked]))
    share = -places.diff() * 40
    assert (counts >= 1).all()
    assert ((counts - share).abs() <= 1.01)[share > 1].all()
    for first, last in zip([0, *where.tolist()], where.tolist(), strict=False):
        inside = rule.position(grid[first : last + 1]).diff()
        assert (inside - inside.mean()).abs().max() < 1e-9


def test_a_plain_grid_is_what_the_spacing_says() -> None:
    for spacing in SPACINGS:
        grid = step_times(times(0), 10, Spacing(spacing, CASES["cosine"]))
        expected = time_grid(spacing, 10, CASES["cosine"])
        torch.testing.assert_close(grid, expected, atol=1e-12, rtol=1e-12)


@methods
def test_times_beyond_the_last_karras_sigma_are_reached_too(method: str) -> None:
    """There the spacing variable is flat, so steps cannot be even in it."""
    teacher, end = gaussian(CASES["cosine"]), times(0.996)
    solved = solve(teacher, NOISE, end, method=method, steps=4, spacing="karras")
    exact = teacher.flow(NOISE * CASES["cosine"].sigma(ONE), ONE, end[0])
    torch.testing.assert_close(solved.states[:, 0], exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("noise_type", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.half, torch.float32)],
)
@methods
def test_the_state_is_double_if_the_noise_is_and_single_otherwise(
    method: str, noise_type: torch.dtype, expected: torch.dtype
) -> None:
    teacher = gaussian(CASES["edm"])
    solved = solve(teacher, NOISE.to(noise_type), times(1, 0.5, 0), method=method, steps=4)
    assert solved.states.dtype == expected
    assert solved.times.dtype == torch.float64


def test_the_condition_reaches_the_denoiser() -> None:
    mixture = GaussianMixture(
        torch.tensor([[-3.0], [3.0]]), torch.tensor([[0.1], [0.1]]), CASES["cosine"]
    )
    labels = torch.tensor([1, 0, 1])
    solved = solve(mixture, NOISE[:, :1], condition={"class_labels": labels})
    assert (solved.states[:, 0, 0] > 0).tolist() == [True, False, True]


def test_nodes_know_their_log_snr_and_angle() -> None:
    first, middle, last = nodes(CASES["rectified_flow"], times(1, 0.5, 0))
    assert (first.half_log_snr, middle.half_log_snr, last.half_log_snr) == (-math.inf, 0, math.inf)
    assert (first.angle, middle.angle, last.angle) == (math.pi / 2, math.pi / 4, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"times": times(0.5, 0.25, 0), "steps": 2}, "ask for at least 3"),
        ({"method": "dpm+2m"}, "'dpm\\+\\+2m'"),
        ({"spacing": "karas"}, "'karras'"),
        ({"times": times(1.1)}, "numbers in \\[0, 1\\]"),
        ({"times": times(math.nan)}, "numbers in \\[0, 1\\]"),
        ({"times": times()}, "non-empty"),
        ({"start": 0.5}, "noise is at 1; found start = 0.5"),
        ({"state": NOISE}, "either noise or a state"),
        ({"noise": None}, "either noise or a state"),
        ({"noise": None, "state": NOISE, "start": 0.0}, "found start = 0.0"),
        ({"noise": None, "state": NOISE, "start": 0.5, "times": times(0.7)}, "in \\[0, 0.5\\]"),
    ],
)
def test_an_impossible_request_is_refused_with_the_remedy(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(gaussian(CASES["cosine"]), **{"noise": NOISE, **arguments})


def test_the_number_of_steps_is_whole_in_every_type() -> None:
    teacher = Gaussian(torch.zeros(2), torch.tensor([1.0, 0.3]), CosineSchedule())
    noise = torch.randn(3, 2)
    expected = solve(teacher, noise, method="ddim", steps=4).states
    for steps in (np.int64(4), 4.0, torch.tensor(4)):
        assert torch.equal(solve(teacher, noise, method="ddim", steps=steps).states, expected)
    for steps in (2.5, True, 0):  # 2.5 was counted up to for ever
        with pytest.raises(InputError, match="number of solver steps must be"):
            solve(teacher, noise, method="ddim", steps=steps)


def test_a_state_that_is_changed_on_the_way_is_gone_on_from_as_a_first_one() -> None:
    teacher, seen = gaussian(CosineSchedule()), []

    def change(t: float, state: Tensor) -> Tensor:
        seen.append(t)
        return state if len(seen) != 2 else NOISE

    solved = solve(teacher, NOISE, method="unipc", steps=5, on_step=change)
    anew = solve(teacher, start=0.6, state=NOISE, method="unipc", steps=3)
    torch.testing.assert_close(solved.states, anew.states)
    np.testing.assert_allclose(seen, [1, 0.8, 0.6, 0.4, 0.2])
