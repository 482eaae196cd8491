"""The perceptual distance against a written-out VGG16, its gradients, and its file."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from dsno.support.errors import InputError
from dsno.training.lpips import VGG16Distance, check_weights, load_vgg16

# torchvision's indices of the convolutions, and those that come right before a pooling.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
BLOCK_ENDS = (2, 7, 14, 21, 28)
FIXED = (1.749985, 1.745288)


def randomise(distance: VGG16Distance) -> None:
    """Weights that keep the size of the activations, so that all five depths count."""
    generator = torch.Generator().manual_seed(5)
    for name, value in distance.state_dict().items():
        if name.endswith("weight"):
            value.normal_(0, math.sqrt(2 / value[0].numel()), generator=generator)
        else:
            value.normal_(0, 0.1, generator=generator)


@pytest.fixture(scope="module")
def distance() -> VGG16Distance:
    module = VGG16Distance()
    randomise(module)
    return module


@pytest.fixture(scope="module")
def weights_file(distance: VGG16Distance, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.safetensors"
    save_file({**distance.state_dict(), "classifier.0.bias": torch.zeros(4)}, path)
    return path


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reference(weights: dict[str, Tensor], first: Tensor, second: Tensor) -> Tensor:
    """The definition, one pair and one pixel norm at a time, in float64."""
    mean = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    deviation = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    sums = []
    for pair in zip(first.double(), second.double(), strict=True):
        x = (torch.stack(pair) - mean) / deviation
        total = 0.0
        for index in CONVOLUTIONS:
            weight, bias = (weights[f"features.{index}.{k}"].double() for k in ("weight", "bias"))
            x = functional.conv2d(x, weight, bias, padding=1).clamp(min=0)
            if index in BLOCK_ENDS:
                length = x.square().sum(1, keepdim=True).sqrt()
                a, b = x / (length + 1e-10)
                total += float(((a - b) ** 2).sum()) / (x.shape[2] * x.shape[3])
                x = x if index == BLOCK_ENDS[-1] else functional.max_pool2d(x, 2)
        sums.append(total)
    return torch.tensor(sums, dtype=torch.float64)


def test_the_distance_is_its_definition(distance: VGG16Distance) -> None:
    first, second = images(3, 3, 16, 24), 1.5 * images(3, 3, 16, 24, seed=1)  # also outside [-1, 1]
    expected = reference(distance.state_dict(), first, second)
    wide = VGG16Distance().double()
    wide.load_state_dict(distance.state_dict())
    # the shift and scale keep float32's digits
    torch.testing.assert_close(wide(first.double(), second.double()), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(distance(first, second).double(), expected, rtol=1e-5, atol=0)


def test_the_distance_is_that_of_the_lpips_package(distance: VGG16Distance) -> None:
    lpips = pytest.importorskip("lpips")
    theirs = lpips.LPIPS(net="vgg", lpips=False, pnet_rand=True, verbose=False)
    ours = distance.state_dict()
    # net.slice2.5.weight is torchvision's features.5.weight
    theirs.net.load_state_dict(
        {name: ours["features." + name.partition(".")[2]] for name in theirs.net.state_dict()}
    )
    first, second = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    expected = theirs(first, second).flatten()
    torch.testing.assert_close(distance(first, second), expected, rtol=1e-5, atol=0)


def test_the_distance_of_seeded_weights_stays_what_it_was(distance: VGG16Distance) -> None:
    got = distance(images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1))
    assert got.shape == (2,)
    assert tuple(got.tolist()) == pytest.approx(FIXED, rel=1e-5)


def test_equal_images_are_at_distance_zero_and_order_does_not_matter(
    distance: VGG16Distance,
) -> None:
    first, second = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=1)
    assert distance(first, first).tolist() == [0, 0]
    assert distance(first, second).min() > 0.1
    torch.testing.assert_close(distance(first, second), distance(second, first), rtol=1e-6, atol=0)


def test_closer_images_are_at_a_smaller_distance(distance: VGG16Distance) -> None:
    first, noise = images(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    far = [float(distance(first + size * noise, first)) for size in (0.01, 0.1, 1.0)]
    assert 0 < far[0] < far[1] < far[2]


def test_gray_images_are_repeated_to_three_channels(distance: VGG16Distance) -> None:
    first, second = images(2, 1, 16, 16), images(2, 1, 16, 16, seed=1)
    expected = distance(first.repeat(1, 3, 1, 1), second.repeat(1, 3, 1, 1))
    torch.testing.assert_close(distance(first, second), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((2, 4, 16, 16), (2, 4, 16, 16), r"of 1 or 3 channels, not .* shape \(4, 16, 16\)"),
        ((2, 2, 16, 16), (2, 2, 16, 16), "of 1 or 3 channels"),
        ((2, 2), (2, 2), r"of 1 or 3 channels, not .* shape \(2,\)"),
        ((2, 3, 32, 15), (2, 3, 32, 15), "at least 16 x 16 pixels, not 32 x 15"),
        ((2, 3, 16, 16), (1, 3, 16, 16), r"\(2, 3, 16, 16\) with \(1, 3, 16, 16\)"),
    ],
)
def test_what_it_cannot_compare_is_refused(
    distance: VGG16Distance, first: tuple[int, ...], second: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message + r".*\.$"):
        distance(torch.zeros(first), torch.zeros(second))


# -------------------------------------------------------------------------------------- gradients


def test_the_gradient_is_the_slope_of_the_definition(distance: VGG16Distance) -> None:
    first, second = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    moved = first.clone().requires_grad_()
    distance(moved, second).sum().backward()
    direction = moved.grad / moved.grad.norm()
    step = 1e-3
    weights = distance.state_dict()
    ends = [reference(weights, first + sign * step * direction, second) for sign in (1, -1)]
    slope = float(ends[0] - ends[1]) / (2 * step)
    assert slope == pytest.approx(float(moved.grad.norm()), rel=1e-2)


def test_only_the_first_images_get_a_gradient(distance: VGG16Distance) -> None:
    first, second = images(2, 3, 16, 16).requires_grad_(), images(2, 3, 16, 16).requires_grad_()
    distance(first + 0.1, second).sum().backward()
    assert second.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in distance.parameters())
    assert first.grad.isfinite().all()
    assert first.grad.abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pixels_whose_channels_are_all_silent_do_no_harm(
    distance: VGG16Distance, dtype: torch.dtype
) -> None:
    """A ReLU can silence every channel of a pixel; its length is then 0."""
    silenced = VGG16Distance()
    silenced.load_state_dict(distance.state_dict())
    silenced.features[7].bias.sub_(4)  # a third of the pixels of relu2_2
    silenced.features[28].bias.sub_(1e3)  # all of relu5_3
    first, second = images(1, 3, 16, 16).requires_grad_(), images(1, 3, 16, 16, seed=1)
    expected = reference(silenced.state_dict(), first.detach(), second)
    value = silenced.to(dtype)(first, second)
    value.sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(value.detach().double(), expected, rtol=tolerance, atol=0)
    assert first.grad.isfinite().all()
    assert first.grad.abs().max() > 1e-4


def test_the_gradient_at_equal_images_is_zero(distance: VGG16Distance) -> None:
    first = images(1, 3, 16, 16)
    moved = first.clone().requires_grad_()
    distance(moved, first).sum().backward()
    assert moved.grad.abs().max() == 0


@pytest.mark.parametrize("cast", ["images", "weights", "autocast"])
def test_half_precision_runs_and_is_summed_in_float32(distance: VGG16Distance, cast: str) -> None:
    first, second = images(2, 3, 16, 16).requires_grad_(), images(2, 3, 16, 16, seed=1)
    expected = distance(first, second).detach()
    module = distance
    if cast == "weights":
        module = VGG16Distance().bfloat16()
        module.load_state_dict(distance.state_dict())
    kind = torch.bfloat16 if cast == "images" else torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        got = module(first.to(kind), second.to(kind))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.detach(), expected, rtol=0.03, atol=0)
    got.sum().backward()
    assert first.grad.isfinite().all()


# --------------------------------------------------------------------------------------- the file


def test_weights_come_from_a_file_with_torchvisions_names(
    distance: VGG16Distance, weights_file: Path
) -> None:
    state = torch.random.get_rng_state()
    loaded = load_vgg16(weights_file)
    assert torch.equal(torch.random.get_rng_state(), state)
    names = [f"features.{i}.{kind}" for i in CONVOLUTIONS for kind in ("weight", "bias")]
    assert list(loaded.state_dict()) == names
    assert all(torch.equal(loaded.state_dict()[n], distance.state_dict()[n]) for n in names)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert sum(p.numel() for p in loaded.parameters()) == 14_714_688  # VGG16 less its classifier


def test_missing_and_mis_shaped_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vgg.safetensors"
    save_file(
        {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.2.weight": torch.zeros(64, 3)},
        path,
    )
    with pytest.raises(InputError) as caught:
        load_vgg16(path)
    assert str(caught.value) == (
        f"{path} does not hold the weights of VGG16: features.0.bias is missing, features.2.weight "
        "is (64, 3) instead of (64, 64, 3, 3), features.2.bias is missing (and 22 more); "
        "take torchvision's vgg16-397923af.pth."
    )


def test_up_to_three_wrong_weights_are_all_that_is_named(distance: VGG16Distance) -> None:
    shapes = {name: list(value.shape) for name, value in distance.state_dict().items()}
    assert check_weights({**shapes, "classifier.6.bias": [1000]}, "it") == list(shapes)
    shapes["features.28.bias"] = [513]
    with pytest.raises(
        InputError, match=r"VGG16: features.28.bias is \(513,\) instead of \(512,\);"
    ):
        check_weights(shapes, "it")
    del shapes["features.0.bias"], shapes["features.5.bias"]
    with pytest.raises(
        InputError, match=r"features.5.bias is missing, features.28.bias is [^;]*,\);"
    ):
        check_weights(shapes, "it")


@pytest.mark.parametrize("suffix", ["pth", "pt", "PKL"])
def test_a_pickle_is_never_opened(tmp_path: Path, suffix: str) -> None:
    path, trace = tmp_path / f"vgg16.{suffix}", tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (trace,)

    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(
        InputError, match=r"is a pickle.*tools/convert_vgg16.py .*vgg16.safetensors"
    ):
        load_vgg16(path)
    assert not trace.exists()


def test_missing_and_damaged_files_are_refused(tmp_path: Path, weights_file: Path) -> None:
    with pytest.raises(InputError, match="There is no file .*nowhere"):
        load_vgg16(tmp_path / "nowhere.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    with weights_file.open("rb") as file:
        damaged.write_bytes(file.read(100_000))
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_vgg16(damaged)
