"""Trained classifiers are kept, and only used for what they were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsno.data.dataset import Dataset
from dsno.evaluation.features import classifier_cache
from dsno.evaluation.features.classifier import TrainedClassifier, train_classifier
from dsno.evaluation.features.classifier_cache import classifier_of
from dsno.support.errors import InputError

IMAGES = torch.rand(160, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = (IMAGES.mean((1, 2, 3)) > 0).long()
DATA = Dataset("brightness", IMAGES, LABELS, 2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSNO_CACHE", str(tmp_path))
    return tmp_path / "features"


def trained(
    data: Dataset = DATA, labels: torch.Tensor = LABELS, seed: int = 0, epochs: int = 1
) -> TrainedClassifier:
    return classifier_of(data, labels, 2, seed=seed, epochs=epochs)


def test_a_classifier_is_trained_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained()
    direct = train_classifier(DATA.rows, LABELS, 2, seed=0, epochs=1)
    assert first.record(0) == direct.record(0)
    monkeypatch.setattr(classifier_cache, "train_classifier", pytest.fail)
    state = torch.get_rng_state()
    again = trained()
    assert torch.equal(torch.get_rng_state(), state)
    assert again.record(0) == direct.record(0)  # the hash of the weights among them
    assert torch.equal(again.network(IMAGES), direct.network(IMAGES))
    assert not again.network.training


def test_whatever_decides_it_is_told_apart(cache: Path) -> None:
    trained()
    trained(Dataset("brightness", IMAGES.flip(0), LABELS, 2))
    trained(labels=1 - LABELS)
    trained(seed=1)
    trained(epochs=2)
    assert len(list(cache.iterdir())) == 5
    trained(Dataset("by another name", IMAGES, LABELS, 2))
    assert len(list(cache.iterdir())) == 5


def test_a_damaged_file_is_named(cache: Path) -> None:
    trained()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", b"nothing", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{path.name} cannot be read .*; delete it and run"):
            trained()


def test_without_room_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DSNO_CACHE", str(tmp_path / "file"))
    assert 0 <= trained().held_out_accuracy <= 1
    assert "The classifier is not kept for the next time" in capsys.readouterr().err
