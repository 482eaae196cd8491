"""The converter of torchvision's VGG16 weights, on made-up weights of the right shapes."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsno.training.lpips import VGG16Distance, load_vgg16

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_vgg16.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_vgg16", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A state dict like torchvision's, with a shorter classifier."""
    return {**VGG16Distance().state_dict(), "classifier.6.bias": torch.ones(1000)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_convolutions_arrive_unchanged_and_load(
    tool: ModuleType,
    state: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    zipped: bool,
) -> None:
    source, destination = tmp_path / "vgg16.pth", tmp_path / "new" / "vgg16.safetensors"
    torch.save(state, source, _use_new_zipfile_serialization=zipped)
    assert tool.main([str(source), str(destination)]) == 0
    assert f"train.vgg16={destination}" in capsys.readouterr().out
    written = load_file(destination)
    assert set(written) == {name for name in state if name.startswith("features.")}
    assert all(torch.equal(value, state[name]) for name, value in written.items())
    loaded = load_vgg16(destination).state_dict()
    assert torch.equal(loaded["features.28.weight"], state["features.28.weight"])
    assert [path.name for path in destination.parent.iterdir()] == [destination.name]


def as_onnx(state: dict[str, Tensor], path: Path) -> None:
    """A graph of the state's convolutions, with a dense layer behind them."""
    import onnx

    held = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in state.items()]
    names = list(state)
    nodes = [
        onnx.helper.make_node("Conv", [f"x{i}", *names[2 * i : 2 * i + 2]], [f"x{i + 1}"])
        for i in range(len(names) // 2)
    ]
    nodes.append(onnx.helper.make_node("Gemm", [nodes[-1].output[0], names[0]], ["y"]))
    ends = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x0", "y")]
    graph = onnx.helper.make_graph(nodes, "vgg16", ends[:1], ends[1:], held)
    onnx.save(onnx.helper.make_model(graph), str(path))


def test_keras_weights_give_what_they_gave_for_their_own_input(
    tool: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    state = VGG16Distance().state_dict()
    as_onnx(state, tmp_path / "vgg16.onnx")
    destination = tmp_path / "vgg16.safetensors"
    assert tool.main([str(tmp_path / "vgg16.onnx"), str(destination)]) == 0
    loaded = load_vgg16(destination)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kerass = (images + 1) * 127.5 - torch.tensor([123.68, 116.779, 103.939])[:, None, None]
    weight, bias = state["features.0.weight"], state["features.0.bias"]
    expected = torch.nn.functional.conv2d(kerass.flip(1), weight, bias)
    ours = loaded.features[0]((images - loaded.shift) / loaded.scale)
    torch.testing.assert_close(ours[:, :, 1:-1, 1:-1], expected, rtol=1e-4, atol=1e-3)
    rest = [name for name in state if not name.startswith("features.0.")]
    assert all(torch.equal(loaded.state_dict()[name], state[name]) for name in rest)


def test_another_onnx_file_is_refused(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    source, destination = tmp_path / "vgg16.onnx", tmp_path / "vgg16.safetensors"
    state = VGG16Distance().state_dict()
    as_onnx({name: state[name] for name in list(state)[:4]}, source)
    assert tool.main([str(source), str(destination)]) == 2
    assert "features.5.weight is missing" in capsys.readouterr().err
    source.write_bytes(b"not onnx")
    assert tool.main([str(source), str(destination)]) == 2
    assert "cannot be read as ONNX" in capsys.readouterr().err
    assert not destination.exists()


class Payload:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_a_pickle_that_would_run_code_is_refused_unrun(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, trace = tmp_path / "vgg16.pth", tmp_path / "ran"
    torch.save({"features.0.weight": Payload(trace)}, source)
    destination = tmp_path / "vgg16.safetensors"
    assert tool.main([str(source), str(destination)]) == 2
    assert "damaged or not a plain state dict" in capsys.readouterr().err
    assert not trace.exists()
    assert not destination.exists()
    torch.load(source, weights_only=False)  # it would have
    assert trace.exists()


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def nested(path: Path) -> None:
    torch.save({"state_dict": {"features.0.weight": torch.ones(1)}}, path)


def a_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path), protocol=2))


def another_network(path: Path) -> None:
    torch.save({"features.0.weight": torch.ones(64, 3, 11, 11)}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, "There is no file"),
        (cut, "is damaged or not a plain state dict"),
        (emptied, "is damaged or not a plain state dict"),
        (nested, "is not a state dict"),
        (a_plain_pickle, "is damaged or not a plain state dict"),
        (another_network, "features.0.weight is (64, 3, 11, 11) instead of (64, 3, 3, 3)"),
    ],
)
def test_other_files_are_refused_and_the_old_result_stays(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    message: str,
) -> None:
    source, destination = tmp_path / "vgg16.pth", tmp_path / "vgg16.safetensors"
    torch.save({"features.0.weight": torch.ones(1)}, source)
    destination.write_bytes(b"old")
    change(source)
    assert tool.main([str(source), str(destination)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith(".\n")
    assert destination.read_bytes() == b"old"
