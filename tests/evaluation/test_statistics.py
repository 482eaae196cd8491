"""Files of statistics: the field's layout, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.detector import by_numpy, write_detector
from tests.pictures import as_floats, random_levels

from dsno.data.dataset import Dataset
from dsno.evaluation.features import Wanted
from dsno.evaluation.frechet import Moments
from dsno.evaluation.reference import build_reference, reference_of_statistics
from dsno.evaluation.statistics import load_statistics, save_statistics
from dsno.runs.judged import holds_statistics
from dsno.support.errors import InputError

SHAPE = (3, 6, 4)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    file = write_detector(tmp_path_factory.mktemp("detector") / "detector.pt")
    return Wanted(SHAPE, torchscript=str(file))


def edm(path: Path, features: np.ndarray) -> Path:
    """What the last lines of EDM's fid.py leave, of features (n, d)."""
    mu, sigma = features.sum(0), features.T @ features
    mu /= len(features)
    sigma -= np.outer(mu, mu) * len(features)
    sigma /= len(features) - 1
    np.savez(path, mu=mu, sigma=sigma)
    return path


def test_what_is_written_is_what_edm_would_write(tmp_path: Path, wanted: Wanted) -> None:
    levels = random_levels(60, 6, 4, 3)
    data = Dataset("random", torch.from_numpy(levels).permute(0, 3, 1, 2))
    made = build_reference(data, ["torchscript"], seed=0, wanted=wanted)
    save_statistics(
        tmp_path / "a.npz",
        made.by_space["torchscript"].moments,
        "random",
        made.spaces["torchscript"],
    )
    expected = dict(np.load(edm(tmp_path / "edm.npz", by_numpy(levels))))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["mu"].dtype == found["sigma"].dtype == np.float64
        assert np.allclose(found["mu"], expected["mu"], atol=1e-3)
        assert np.allclose(found["sigma"], expected["sigma"], rtol=1e-3, atol=1e-2)
    back = load_statistics(tmp_path / "a.npz")
    assert back.name == "random"
    assert back.moments.count == 60
    assert torch.equal(back.moments.covariance, made.by_space["torchscript"].moments.covariance)
    again = reference_of_statistics(tmp_path / "a.npz", [], wanted=wanted)  # it says its features
    assert list(again.spaces) == ["torchscript"]
    assert again.distances(as_floats(levels))["torchscript"] == pytest.approx(0, abs=1e-6)


def test_foreign_statistics_are_compared_with(tmp_path: Path, wanted: Wanted) -> None:
    levels = random_levels(50, 6, 4, 3)
    features = by_numpy(levels)
    path = edm(tmp_path / "edm.npz", features + 2.0)  # the means are off by 2 in 5 dimensions
    with pytest.raises(InputError, match="does not say which features it is of; name them"):
        reference_of_statistics(path, [], wanted=wanted)
    with pytest.raises(InputError, match="are of 5 features, but 'pixels' has 72"):
        reference_of_statistics(path, ["pixels"], wanted=wanted)
    with pytest.raises(InputError, match="of one feature space"):
        reference_of_statistics(path, ["torchscript", "pixels"], wanted=wanted)
    found = reference_of_statistics(path, ["torchscript"], wanted=wanted)
    assert found.distances(as_floats(levels))["torchscript"] == pytest.approx(20, rel=1e-4)
    assert found.count == 0  # the file does not say
    assert {s.of for s in found.shortages(50)} == {"samples"}


def test_statistics_of_other_features_are_refused(tmp_path: Path, wanted: Wanted) -> None:
    data = Dataset("random", torch.from_numpy(random_levels(9, 6, 4, 3)).permute(0, 3, 1, 2))
    made = build_reference(data, ["thumbnail"], seed=0)
    path = tmp_path / "a.npz"
    save_statistics(path, made.by_space["thumbnail"].moments, "random", made.spaces["thumbnail"])
    with pytest.raises(InputError, match="are of the features 'thumbnail', not of 'torchscript'"):
        reference_of_statistics(path, ["torchscript"], wanted=wanted)
    detector = build_reference(data, ["torchscript"], seed=0, wanted=wanted)
    space = detector.spaces["torchscript"]
    save_statistics(path, detector.by_space["torchscript"].moments, "random", space)
    other = Path(wanted.torchscript).with_name("other.pt")
    script = torch.jit.load(wanted.torchscript)
    torch.jit.save(script, str(other), _extra_files={"note": b"another file"})
    changed = Wanted(SHAPE, torchscript=str(other))
    with pytest.raises(
        InputError, match=r"are of other .torchscript. features \(sha256: [0-9a-f]+ there"
    ):
        reference_of_statistics(path, [], wanted=changed)


def test_damaged_statistics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="There is no file"):
        load_statistics(path)
    path.write_bytes(b"PK nothing")
    assert not holds_statistics(path)
    with pytest.raises(InputError, match="cannot be read as statistics"):
        load_statistics(path)
    mu, sigma = np.zeros(3), np.eye(3)
    for arrays, words in [
        ({"mu": mu}, "expected the arrays mu and sigma, sigma missing"),
        ({"mu": mu, "sigma": np.eye(2)}, r"mu has shape \(3,\), sigma \(2, 2\)"),
        ({"mu": mu, "sigma": sigma * np.nan}, "are not finite"),
        ({"mu": mu, "sigma": np.triu(np.ones((3, 3)))}, "is not symmetric"),
        ({"mu": np.array([None] * 3), "sigma": sigma}, "holds objects"),
        ({"mu": mu, "sigma": sigma, "features": np.array("{}")}, "is incomplete"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=words):
            load_statistics(path)
    np.savez(path, mu=mu, sigma=sigma)
    assert holds_statistics(path)
    found = load_statistics(path).moments
    assert isinstance(found, Moments)
    assert found.count == 0
