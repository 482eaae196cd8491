"""Feature spaces: pixels and a small seeded classifier."""

from __future__ import annotations

import pytest
import torch

from dsno.data.dataset import Dataset
from dsno.data.load import load_data
from dsno.evaluation.features import Classifier, TrainedClassifier, pixels, train_classifier
from dsno.support.errors import InputError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> TrainedClassifier:
    return train_classifier(digits.rows, digits.labels, digits.num_classes, epochs=20)


def test_the_digits_are_what_they_should_be(digits: Dataset) -> None:
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (-1, 1)
    assert digits.sample_shape == (1, 8, 8)
    assert set(digits.labels.tolist()) == set(range(10))
    assert sum(digits.label_frequencies) == pytest.approx(1)
    assert digits.label_frequencies[0] == pytest.approx(178 / 1797)


def test_an_unknown_data_source_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_data("digit")


def test_pixels_are_the_values_themselves() -> None:
    x = torch.arange(12.0).reshape(2, 1, 2, 3)
    assert pixels(x).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_the_classifier_reads_digits_it_has_not_seen(trained: TrainedClassifier) -> None:
    assert trained.held_out_accuracy >= 0.97
    record = trained.record(3)
    assert record == {
        "dimension": 64,
        "held_out_accuracy": trained.held_out_accuracy,
        "seed": 3,
        "weights_sha256": record["weights_sha256"],
    }
    assert len(record["weights_sha256"]) == 64


def test_features_are_the_last_hidden_layer_of_clamped_images(
    digits: Dataset, trained: TrainedClassifier
) -> None:
    network = trained.network
    assert not network.training
    features = network.features(digits.images[:1200])  # more than one part
    assert features.shape == (1200, 64)
    logits = network(digits.images[:1200])
    assert torch.allclose(network.head(features), logits, atol=1e-5)
    beyond = digits.images[:5] * 3
    assert torch.equal(network.features(beyond), network.features(beyond.clamp(-1, 1)))
    assert not features.requires_grad


def weights(network: Classifier) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(network.parameters())


def test_the_classifier_is_a_function_of_the_seed(digits: Dataset) -> None:
    images, labels = digits.images[:400], digits.labels[:400]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = train_classifier(images.__getitem__, labels, 10, seed=1, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are touched
    torch.manual_seed(6)
    again = train_classifier(images.__getitem__, labels, 10, seed=1, epochs=2)
    other = train_classifier(images.__getitem__, labels, 10, seed=2, epochs=2)
    assert torch.equal(weights(first.network), weights(again.network))
    assert first.held_out_accuracy == again.held_out_accuracy
    assert not torch.equal(weights(first.network), weights(other.network))


def test_data_that_are_not_images_are_refused() -> None:
    with pytest.raises(InputError, match="need images; use the features 'pixels'"):
        train_classifier(torch.zeros(100, 2).__getitem__, torch.zeros(100, dtype=torch.int64), 2)
