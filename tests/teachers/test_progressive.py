"""Progressive-distillation checkpoints: the network they describe, and files that lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.foreign import CIFAR, IMAGENET, Tree, array, checkpoint, packed, reference, write
from torch import Tensor

from dsno.diffusion.denoisers import Denoiser
from dsno.support.errors import InputError
from dsno.teachers.flax_checkpoint import read_flax
from dsno.teachers.progressive import load_progressive


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    return write(tmp_path / "cifar_original", checkpoint(**CIFAR))


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    return write(tmp_path / "imagenet_16", checkpoint(**IMAGENET))


def run(denoiser: Denoiser, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """The network's own output at the time input t."""
    condition = {} if label is None else {"class_labels": label}
    return denoiser.call(denoiser.network, x, t, condition)


@pytest.mark.parametrize("kind", [CIFAR, IMAGENET], ids=["cifar", "imagenet"])
def test_the_network_is_the_one_salimans_and_ho_define(tmp_path: Path, kind: Any) -> None:
    check_network(write(tmp_path / "weights", checkpoint(**kind)), kind)


def test_one_head_may_have_another_width_at_each_level(tmp_path: Path) -> None:
    kind = {**CIFAR, "channels": (64, 64, 128)}
    check_network(write(tmp_path / "weights", checkpoint(**kind)), kind)


def check_network(path: Path, kind: Any) -> None:
    denoiser = load_progressive(path, sample_size=16)
    denoiser.network.double()
    x, t = torch.randn(2, 3, 16, 16).double(), torch.tensor([20.25, 700.5])
    label = torch.tensor([4, 1]) if "classes" in kind else None
    made = run(denoiser, x, t, label)
    expected = reference(checkpoint(**kind), kind["attention"], x, t, label)
    assert made.std() > 0.3
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)


def test_that_comparison_sees_every_weight(imagenet: Path) -> None:
    denoiser = load_progressive(imagenet, sample_size=16)
    x, t, label = torch.randn(1, 3, 16, 16), torch.tensor([100.0]), torch.tensor([2])
    denoiser.network.requires_grad_(True)
    run(denoiser, x, t, label).square().sum().backward()
    unseen = {
        name
        for name, parameter in denoiser.network.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() < 1e-3
    }
    # softmax does not change with what is added to every key
    assert all(name.endswith("to_k.bias") for name in unseen)


def test_known_numbers(cifar: Path, imagenet: Path) -> None:
    x, t = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16), torch.tensor([500.0])
    made = run(load_progressive(cifar, sample_size=16), x, t, None)[0, :, 5, 7]
    torch.testing.assert_close(made, torch.tensor([1.6025, 0.2663, 0.1291]), atol=1e-3, rtol=0)
    denoiser = load_progressive(imagenet, sample_size=16)
    made = run(denoiser, x, t, torch.tensor([3]))[0, :, 5, 7]
    expected = torch.tensor([-0.7163, -2.2091, 1.4796, -0.4129, -0.6691, 0.8618])
    torch.testing.assert_close(made, expected, atol=1e-3, rtol=0)


# ---- the denoiser --------------------------------------------------------------------------------


def test_an_x_teacher_is_told_the_angle_and_clips(cifar: Path) -> None:
    denoiser, free = load_progressive(cifar), load_progressive(cifar, clip=False)
    assert denoiser.sample_shape == (3, 32, 32)
    assert not any(p.requires_grad for p in denoiser.network.parameters())
    assert not denoiser.network.training
    x, t = 3 * torch.randn(1, 3, 32, 32), torch.tensor(0.3, dtype=torch.float64)
    log_snr = float(denoiser.schedule.log_snr(t))
    told = 1000 * math.atan(math.exp(-log_snr / 2)) / (math.pi / 2)
    expected = run(free, x, torch.tensor([told]), None)
    assert expected.abs().max() > 1
    torch.testing.assert_close(free(x, t), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(denoiser(x, t), expected.clamp(-1, 1), atol=1e-5, rtol=0)


def test_an_x_and_epsilon_teacher_blends_both(imagenet: Path) -> None:
    denoiser = load_progressive(imagenet, clip=False)
    assert denoiser.sample_shape == (3, 64, 64)
    x, t = torch.randn(1, 3, 64, 64), torch.tensor(0.6, dtype=torch.float64)
    label = torch.tensor([1])
    alpha, sigma = float(denoiser.schedule.alpha(t)), float(denoiser.schedule.sigma(t))
    told = denoiser.preconditioning.c_noise(t).float()[None]
    clean, noise = run(denoiser, x, told, label).chunk(2, 1)
    expected = sigma**2 * clean + alpha**2 * (x - sigma * noise) / alpha
    made = denoiser(x, t, {"class_labels": label})
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_a_student_trains_with_the_papers_dropout(cifar: Path, imagenet: Path) -> None:
    for path, rate in ((cifar, 0.2), (imagenet, 0.1)):
        network: Any = load_progressive(path).network
        assert network.config.dropout == rate


def test_the_image_size_is_known_for_the_published_ones_only(tmp_path: Path) -> None:
    two = {**CIFAR, "channels": (32, 32), "attention": (False, True)}
    path = write(tmp_path / "two", checkpoint(**two))
    assert load_progressive(path, sample_size=8).sample_shape == (3, 8, 8)
    assert refusal(path).endswith("does not say how large its images are; give image_size=N.")
    for size in (0, -2, 9):
        with pytest.raises(InputError, match=f"must be a multiple of 2, not {size}"):
            load_progressive(path, sample_size=size)


# ---- the same weights in other wrappings ---------------------------------------------------------


def same(first: Path, second: Path) -> bool:
    one, two = (load_progressive(p, sample_size=8).network.state_dict() for p in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def dotted(tree: Tree) -> dict[str, Tensor]:
    return {
        f"{layer}.{part}" if leaf is None else f"{layer}.{part}.{leaf}": torch.tensor(value)
        for layer, parts in tree.items()
        for part, inner in parts.items()
        for leaf, value in (inner.items() if isinstance(inner, dict) else [(None, inner)])
    }


def test_safetensors_give_the_same_network(cifar: Path) -> None:
    other = cifar.with_name("cifar.safetensors")
    save_file(dotted(checkpoint(**CIFAR)), other)
    assert same(other, cifar)


def test_chunked_arrays_are_put_together(cifar: Path) -> None:
    tree = checkpoint(**CIFAR)
    whole = tree["conv_in"]["kernel"]
    tree["conv_in"]["kernel"] = chunked(whole, whole.reshape(-1)[:100], whole.reshape(-1)[100:])
    assert same(write(cifar.with_name("chunked"), tree), cifar)


def chunked(whole: Any, *chunks: Any) -> dict[str, Any]:
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(whole.shape)},
        "chunks": {str(i): chunk for i, chunk in enumerate(chunks)},
    }


def test_the_optimizer_is_skipped_whatever_it_holds(cifar: Path) -> None:
    odd = {"state": {"x": np.ones(4), 7: [1, b"2", None]}, "kind": msgpack.ExtType(9, b"?")}
    other = write(cifar.with_name("odd"), checkpoint(**CIFAR), optimizer=odd, last="entry")
    assert same(other, cifar)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int32"])
def test_other_types_are_read_as_what_they_are(tmp_path: Path, kind: str) -> None:
    values = torch.tensor([[1.5, -2.0, 300.0]]).to(getattr(torch, kind))
    content = values.view(torch.uint8).numpy().tobytes()
    path = write(
        tmp_path / "x", {"a.b": {"c": array([], shape=(1, 3), name=kind, content=content)}}
    )
    found = read_flax(path)
    assert list(found) == ["a.b.c"]
    assert found["a.b.c"].dtype == getattr(torch, kind)
    assert torch.equal(found["a.b.c"], values)


# ---- files that lie ------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_progressive(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert text.endswith(".")
    return text


ONE = np.zeros(4, np.float32)
DEEP: Any = ONE
for _ in range(9):
    DEEP = {"a": DEEP}

LIES: dict[str, tuple[Any, str]] = {
    "length": ({"a": array(ONE, shape=(5,))}, "an array of shape [5] has 16 bytes"),
    "huge": ({"a": array(ONE, shape=(2**40, 2**40))}, "has 16 bytes"),
    "negative": ({"a": array(ONE, shape=(-1, -4))}, "[-1, -4] is not the shape of an array"),
    "empty": ({"a": array(ONE, shape=(0,), content=b"")}, "[0] is not the shape of an array"),
    "truth": ({"a": array(ONE, shape=(True, 4))}, "[True, 4] is not the shape of an array"),
    "scalar shape": ({"a": array(ONE, shape=4)}, "4 is not the shape of an array"),
    "dims": ({"a": array(ONE, shape=(1,) * 9)}, "exceeds max_array_len"),
    "object": ({"a": array(ONE, name="object")}, "arrays of type b'object' are not read"),
    "float64": ({"a": array(ONE, name="float64")}, "arrays of type b'float64' are not read"),
    "no name": ({"a": array(ONE, name=7)}, "arrays of type 7 are not read"),
    "long name": ({"a": array(ONE, name="x" * 99)}, "arrays of type b'xxx"),
    "content": ({"a": array(ONE, content=7)}, "an array's content is not bytes"),
    "parts": ({"a": msgpack.ExtType(1, msgpack.packb([1]))}, "not (shape, type, bytes)"),
    "no list": ({"a": msgpack.ExtType(1, b"\x01")}, "not (shape, type, bytes)"),
    "inner junk": ({"a": msgpack.ExtType(1, b"\xc1")}, "is damaged (it is not msgpack)"),
    "inner rest": ({"a": msgpack.ExtType(1, b"\x01\x01")}, "is damaged (unpack(b) received extra"),
    "extension": ({"a": msgpack.ExtType(2, b"")}, "its extension type 2 is not an array"),
    "scalar": ({"a": {"b": 7}}, "'a.b' is not an array"),
    "null": ({"a": None}, "'a' is not an array"),
    "list": ({"a": [1, 2]}, "exceeds max_array_len"),
    "binary": ({"a": b"12"}, "exceeds max_bin_len"),
    "key": ({b"a": ONE}, "exceeds max_bin_len"),
    "number key": ({7: ONE}, "is not allowed for map key"),
    "long key": ({"a" * 300: ONE}, "exceeds max_str_len"),
    "deep": (DEEP, "nested more than 8 maps deep"),
    "two ways": ({"a": {"b.c": ONE}, "a.b": {"c": ONE}}, "'a.b.c' occurs twice"),
    "array itself": (ONE, "it has no map 'ema_params'"),
    "chunk sum": ({"a": chunked(ONE, ONE[:3])}, "the chunks of an array of shape [4] do not"),
    "chunk kinds": ({"a": chunked(ONE, ONE[:3], ONE[3:].astype(int))}, "do not make it up"),
    "chunk none": ({"a": chunked(ONE)}, "a chunk of a chunked array is not a flat array"),
    "chunk folded": ({"a": chunked(ONE, ONE.reshape(2, 2))}, "is not a flat array"),
    "chunk rest": ({"a": {**chunked(ONE, ONE), "b": 1}}, "lacks its shape or chunks"),
    "chunk keys": ({"a": {**chunked(ONE, ONE), "chunks": {"1": ONE}}}, "not numbered from 0"),
    "chunk list": ({"a": {**chunked(ONE, ONE), "chunks": 1}}, "not numbered from 0"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_file_is_refused_with_its_lie(tmp_path: Path, name: str) -> None:
    tree, complaint = LIES[name]
    text = refusal(write(tmp_path / "weights", tree))
    assert "is not a progressive-distillation checkpoint or is damaged (" in text
    assert complaint in text
    assert text.endswith("); fetch it again.")


NOT_WHOLE: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "it ends too early"),
    "text": (b"hello", "Unexpected type header on stream"),
    "half": (packed({"a": ONE})[:-3], "it ends too early"),
    "more": (packed({"a": ONE}) + b"\0\0", "2 bytes follow its end"),
    "no parameters": (msgpack.packb({"params": {}}), "it has no map 'ema_params'"),
    "many": (b"\x81\xaaema_params\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
    "a long array": (b"\x81\xaaema_params\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
    "a long extension": (b"\x81\xaaema_params\xc9\xff\xff\xff\xfe\x01", "it ends too early"),
    "nests": (b"\x81\xaaema_params" + b"\x81\xa1a" * 5000, "it is not msgpack"),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_what_is_not_a_whole_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    content, complaint = NOT_WHOLE[name]
    path = tmp_path / "weights"
    path.write_bytes(content)
    assert complaint in refusal(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path, entry = tmp_path / "weights", msgpack.packb("a") + msgpack.packb({})
    path.write_bytes(b"\x81" + msgpack.packb("ema_params") + b"\x82" + entry + entry)
    assert "a name occurs twice" in refusal(path)
    entry = msgpack.packb("ema_params") + msgpack.packb({})
    path.write_bytes(b"\x82" + entry + entry)
    assert "'ema_params' occurs twice" in refusal(path)


def test_more_entries_than_any_checkpoint_has_are_refused(tmp_path: Path) -> None:
    tree = {str(i): {str(j): {} for j in range(200)} for i in range(101)}
    assert "it has more than 20,000 entries" in refusal(write(tmp_path / "weights", tree))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("nowhere", "nowhere.safetensors"):
        assert "cannot be read" in refusal(tmp_path / name)
    (tmp_path / "damaged.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    assert "cannot be read" in refusal(tmp_path / "damaged.safetensors")


SMALL = packed({"a.b": {"c": ONE, "d": chunked(ONE, ONE[:1], ONE[1:])}, "e": {"f": ONE}})


@given(st.data())
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_mutated_bytes_never_escape_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = (
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    path = tmp_path / "weights"
    path.write_bytes(bytes(content))
    try:
        found = read_flax(path)
    except InputError:
        return
    assert all(isinstance(value, Tensor) for value in found.values())


# ---- weights that do not fit ---------------------------------------------------------------------


def edited(tmp_path: Path, change: Callable[[Tree], Any], **kind: Any) -> str:
    tree = checkpoint(**{**CIFAR, **kind})
    change(tree)
    return refusal(write(tmp_path / "weights", tree))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def change(tree: Tree) -> None:
        del tree["mid.block_1"]["norm1"]["bias"]
        tree["extra"] = {"kernel": ONE}
        tree["up_1.attn_0"]["v"]["bias"] = np.zeros((2, 32), np.float32)

    assert (
        "do not fit the network (missing: mid.block_1.norm1.bias; extra: extra.kernel; "
        "of another shape: up_1.attn_0.v.bias)"
    ) in edited(tmp_path, change)


def test_only_the_first_three_are_named(tmp_path: Path) -> None:
    text = edited(tmp_path, lambda tree: tree.pop("down_0.downsample"))
    assert "missing: down_0.downsample.conv1.bias, down_0.downsample.conv1.kernel, " in text
    assert "down_0.downsample.conv2.bias and 7 more)" in text


CHANGES: dict[str, tuple[Callable[[Tree], Any], str]] = {
    "none": (lambda tree: tree.clear(), "it has no weight conv_in.kernel."),
    "flat": (
        lambda tree: tree["conv_in"].update(kernel=ONE),
        "its weight conv_in.kernel has 1 dimensions, not 4.",
    ),
    "levels": (lambda tree: tree.pop("down_0.block_0"), "it has 0 levels of 0 blocks."),
    "width": (
        lambda tree: tree["down_1.block_0"]["conv1"].update(kernel=np.zeros((3, 3, 64, 40), "f")),
        "its widths (64, 40, 64) are not multiples of 32.",
    ),
    "output": (
        lambda tree: tree["conv_out"].update(kernel=np.zeros((3, 3, 64, 4), "f")),
        "it has 4 output channels for images of 3, so it predicts neither x nor x and epsilon.",
    ),
    "heads": (
        lambda tree: tree["mid.attn_1"]["q"].update(kernel=np.zeros((64, 2, 32), "f")),
        "its attention heads are of several sizes, [32, 64].",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_such_a_network_is_refused(tmp_path: Path, name: str) -> None:
    change, complaint = CHANGES[name]
    text = edited(tmp_path, change)
    assert "is not a progressive-distillation U-Net that can be read: " in text
    assert text.endswith(complaint)
