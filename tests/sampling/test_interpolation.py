"""Spherical interpolation: equal lengths, equal angles, the ends as they are."""

from __future__ import annotations

import math

import pytest
import torch

from dsno.sampling.interpolation import spherical
from dsno.support.errors import InputError


def test_a_quarter_of_a_circle_is_divided_evenly() -> None:
    found = spherical(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 4)
    expected = [[2 * math.cos(i * math.pi / 6), 2 * math.sin(i * math.pi / 6)] for i in range(4)]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_noise_keeps_its_length_and_each_pair_its_own_angle() -> None:
    first, last = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    last *= first.flatten(1).norm(dim=1).div(last.flatten(1).norm(dim=1)).reshape(3, 1, 1, 1)
    found = spherical(first, last, 5)
    assert found.shape == (3, 5, 1, 8, 8)
    torch.testing.assert_close(found[:, 0], first)
    torch.testing.assert_close(found[:, -1], last)
    lengths = found.flatten(2).norm(dim=2)
    torch.testing.assert_close(lengths, lengths[:, :1].expand(3, 5))
    flat = found.flatten(2)
    angles = torch.nn.functional.cosine_similarity(flat[:, 1:], flat[:, :-1], dim=2).acos()
    torch.testing.assert_close(angles, angles[:, :1].expand(3, 4), atol=1e-4, rtol=0)


def test_noises_of_one_direction_are_joined_by_a_line() -> None:
    one = torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(
        spherical(one, 3 * one, 3), torch.tensor([[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    )
    opposite = spherical(one, -one, 3)
    torch.testing.assert_close(opposite, torch.tensor([[[1.0, 1.0], [0.0, 0.0], [-1.0, -1.0]]]))


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2, not 1"):
        spherical(torch.zeros(1, 2), torch.zeros(1, 2), 1)
    with pytest.raises(InputError, match=r"one shape, not \(1, 2\) and \(2, 2\)"):
        spherical(torch.zeros(1, 2), torch.zeros(2, 2), 3)
