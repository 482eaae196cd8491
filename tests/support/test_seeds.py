"""Random numbers as pure functions of (seed, stream, index)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dsno.support import seeds

STREAMS = {
    name: value
    for name, value in vars(seeds).items()
    if name.isupper() and isinstance(value, int) and not name.startswith("_")
}


def test_an_item_does_not_depend_on_its_batch_or_order() -> None:
    together = seeds.item_noise(3, range(10), (2, 4))
    assert together.shape == (10, 2, 4)
    assert together.dtype == torch.float32
    for items in ([7], [9, 0, 4], range(3, 6)):
        assert torch.equal(seeds.item_noise(3, items, (2, 4)), together[list(items)])


def test_an_items_noise_is_that_of_a_generator_of_its_own() -> None:
    items = [3, 0, 2**40, 2**63, 3]  # odd numbers of floats leave half a draw behind
    made = seeds.item_noise(2**70 + 9, items, (5,), stream=seeds.SAMPLE)
    for row, item in zip(made, items, strict=True):
        own = np.random.Philox(key=[9, seeds.SAMPLE], counter=[0, item, 0, 0])
        assert row.tolist() == np.random.Generator(own).standard_normal(5, np.float32).tolist()


def test_an_items_label_does_not_depend_on_its_batch() -> None:
    share = [0.2, 0.5, 0.3]
    together = seeds.item_labels(3, range(50), share)
    assert torch.equal(seeds.item_labels(3, [41, 2], share), together[[41, 2]])


def test_no_items_give_an_empty_batch() -> None:
    assert seeds.item_noise(0, [], (3, 2)).shape == (0, 3, 2)
    assert seeds.item_labels(0, [], [1.0]).tolist() == []


@pytest.mark.parametrize("power", [32, 48])
def test_numbers_beyond_32_bits_count(power: int) -> None:
    """A generator that keeps 32 bits of its seed gives pairs of items the same noise."""
    far = 5 + 2**power
    first = seeds.item_noise(5, [5], (4,))
    assert not torch.equal(first, seeds.item_noise(far, [5], (4,)))
    assert not torch.equal(first, seeds.item_noise(5, [far], (4,)))


def test_every_seed_of_64_bits_has_its_own_numbers() -> None:
    """Negative ones are those of two's complement. numpy makes floats of a list from 2^63 on."""
    given = [0, 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, -1, -3]
    found = {tuple(seeds.item_noise(seed, [0], (4,)).flatten().tolist()) for seed in given}
    assert len(found) == len(given)
    assert torch.equal(seeds.item_noise(-1, [0], (4,)), seeds.item_noise(2**64 - 1, [0], (4,)))


def test_no_two_of_many_items_share_their_noise() -> None:
    noise = seeds.item_noise(0, range(20_000), (2,)).double()
    assert len(torch.unique(noise, dim=0)) == 20_000


def test_items_next_to_each_other_do_not_overlap() -> None:
    """Counters of neighbours lie 2^64 blocks apart: a long item never runs into the next."""
    long, following = seeds.item_noise(0, [0, 1], (50_000,))
    shared = torch.isin(following[:8], long)
    assert shared.sum() <= 1


def test_noise_is_unit_normal_and_uncorrelated() -> None:
    noise = seeds.item_noise(11, range(4000), (8,)).double()
    rows = noise.numel() ** 0.5
    assert noise.mean().abs() < 4 / rows
    assert (noise.var() - 1).abs() < 4 * 2**0.5 / rows
    covariance = torch.cov(noise.T) - torch.eye(8)
    assert covariance.abs().max() < 0.08
    assert (noise[1:] * noise[:-1]).mean().abs() < 4 / rows
    inside = (noise.abs() < 1).double().mean()
    assert inside.item() == pytest.approx(0.6827, abs=0.011)


def test_labels_have_the_asked_frequencies() -> None:
    labels = seeds.item_labels(1, range(20_000), [1.0, 0.0, 2.0, 5.0])  # need not be normalised
    counts = torch.bincount(labels, minlength=4).double()
    expected = torch.tensor([0.125, 0, 0.25, 0.625]) * 20_000
    assert counts[1] == 0
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 13.8  # two degrees of freedom, 0.1 %
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("draw", "label"), [(0.0, 1), (0.25, 1), (0.5, 2), (0.75, 4), (1 - 2**-53, 4)]
)
def test_a_draw_at_the_edge_of_two_classes_is_of_the_upper_one(
    draw: float, label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class with a frequency of 0, here the first and the fourth, is never drawn."""

    class Drawn:
        def random(self) -> float:
            return draw

    monkeypatch.setattr(seeds, "_generators", lambda *_: [Drawn()])
    assert seeds.item_labels(0, [0], [0.0, 0.5, 0.25, 0.0, 0.25]).tolist() == [label]


def test_every_stream_has_its_own_numbers() -> None:
    assert len(set(STREAMS.values())) == len(STREAMS) >= 8
    drawn = {name: seeds.item_noise(0, [0], (6,), stream=s) for name, s in STREAMS.items()}
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not torch.isin(one, other).any()


@pytest.mark.parametrize(("batch", "count"), [(4, 12), (5, 12), (7, 3), (1, 5)])
def test_batches_chain_into_permutations(batch: int, count: int) -> None:
    steps = -(-3 * count // batch)
    chain = torch.cat([seeds.batch_items(2, step, batch, count) for step in range(steps)])
    epochs = chain[: 3 * count].reshape(3, count)
    assert torch.equal(epochs.sort(1).values, torch.arange(count).expand(3, -1))
    if count > 4:
        assert not torch.equal(epochs[0], epochs[1])
        assert not torch.equal(epochs[1], epochs[2])


def test_a_batch_does_not_depend_on_the_steps_before_it() -> None:
    forward = [seeds.batch_items(9, step, 5, 13) for step in range(12)]
    seeds._epoch_order.cache_clear()
    for step in (11, 0, 7, 3):
        assert torch.equal(seeds.batch_items(9, step, 5, 13), forward[step])
    assert not torch.equal(seeds.batch_items(10, 0, 5, 13), forward[0])


def test_torch_seeds_follow_seed_stream_and_index() -> None:
    draw = seeds.torch_seed

    base = draw(0, seeds.WEIGHTS, 3)
    assert base == draw(0, seeds.WEIGHTS, 3)
    assert base not in (draw(1, seeds.WEIGHTS, 3), draw(0, 3, 3), draw(0, seeds.WEIGHTS, 2))


@pytest.mark.parametrize(("count", "shard", "window"), [(103, 10, 3), (100, 10, 1), (20, 5, 4)])
def test_a_window_needs_few_shards_at_a_time_and_misses_no_item(
    count: int, shard: int, window: int
) -> None:
    rows = seeds.batch_items(1, 0, 2 * count, count, shard=shard, window=window)
    for epoch in rows.reshape(2, count):
        assert sorted(epoch.tolist()) == list(range(count))
        for number in range(-(-count // shard)):
            places = (epoch // shard == number).nonzero()
            assert int(places.max() - places.min()) < window * shard
    assert not torch.equal(rows[:count], rows[count:])


def test_a_window_of_every_shard_is_no_window() -> None:
    whole = seeds.batch_items(1, 3, 16, 100)
    assert torch.equal(whole, seeds.batch_items(1, 3, 16, 100, shard=10, window=10))
    assert not torch.equal(whole, seeds.batch_items(1, 3, 16, 100, shard=10, window=9))
