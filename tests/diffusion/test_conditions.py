"""What conditions an item: a function of (seed, item), with the distribution asked for."""

from __future__ import annotations

import torch
from tests.makers import seeded

from dsno.diffusion.conditions import UNCONDITIONAL, Conditions

EVERYTHING = Conditions([0.2, 0.8], (1.5, 4.5), seeded((3, 5, 2)).half())


def test_an_items_condition_does_not_depend_on_its_batch() -> None:
    together = EVERYTHING.draw(7, range(20))
    for i in (0, 11, 19):
        alone = EVERYTHING.draw(7, [i])
        assert {k: v[0].item() for k, v in alone.items()} == {
            k: v[i].item() for k, v in together.items()
        }
    assert together["guidance_scale"].dtype == torch.float32
    assert together["prompt_index"].dtype == torch.int32


def test_samples_are_conditioned_otherwise_than_trajectories() -> None:
    made, sampled = EVERYTHING.draw(7, range(50)), EVERYTHING.draw(7, range(50), sampling=True)
    assert made.keys() == sampled.keys() == {"class_labels", "guidance_scale", "prompt_index"}
    assert all(not torch.equal(made[k], sampled[k]) for k in made)


def test_labels_scales_and_prompts_have_the_distribution_asked_for() -> None:
    drawn = EVERYTHING.draw(0, range(4000))
    assert abs(drawn["class_labels"].float().mean() - 0.8) < 0.02
    scale = drawn["guidance_scale"]
    assert 1.5 <= scale.min() < 1.51
    assert 4.49 < scale.max() <= 4.5
    assert abs(scale.mean() - 3) < 0.05  # even: standard deviation of the mean 0.014
    assert (torch.bincount(drawn["prompt_index"].long()) / 4000 - 1 / 3).abs().max() < 0.03


def test_prompts_become_their_embeddings_in_float32() -> None:
    drawn = EVERYTHING.draw(0, range(6))
    given = EVERYTHING.expand(drawn)
    assert given is not None
    assert "prompt_index" not in given
    expected = torch.stack([EVERYTHING.prompts[i].float() for i in drawn["prompt_index"].tolist()])
    assert torch.equal(given["encoder_hidden_states"], expected)
    assert given["class_labels"].dtype == torch.int64


def test_no_condition_is_none() -> None:
    assert UNCONDITIONAL.draw(0, range(3)) == {}
    assert UNCONDITIONAL.expand({}) is None
