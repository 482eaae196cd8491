"""The exporter of EDM's snapshots, on stand-ins for the classes of EDM's own code."""

from __future__ import annotations

import importlib.util
import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dsno.backbones import edm
from dsno.diffusion.schedules import EDMSchedule
from dsno.teachers.edm import load_edm

SCRIPT = Path(__file__).parents[2] / "tools" / "export_edm.py"
ARGUMENTS: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 2,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
}


class SongUNet(edm.SongUNet):
    """Knows its arguments, as EDM's persistent classes do."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.init_args, self.init_kwargs = (), arguments


class EDMPrecond(nn.Module):
    def __init__(self, model: nn.Module, **limits: float) -> None:
        super().__init__()
        self.model = model
        self.sigma_min = limits.get("sigma_min", 0)
        self.sigma_max = limits.get("sigma_max", math.inf)
        self.sigma_data = 0.6


class VPPrecond(EDMPrecond):
    pass


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_edm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_exported_network_loads_as_a_teacher(tool: ModuleType, tmp_path: Path) -> None:
    net = EDMPrecond(SongUNet(**ARGUMENTS).eval())
    tool.export(net, tmp_path / "new" / "folder")
    teacher = load_edm(tmp_path / "new" / "folder")
    assert teacher.schedule == EDMSchedule(0.002, 80, 7)
    assert teacher.sigma_data == 0.6
    x, told, labels = torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([0, 1, 2])
    with torch.no_grad():
        assert torch.equal(teacher.network(x, told, labels), net.model(x, told, labels))
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"network.json", "network.safetensors"}


def test_the_description_is_plain_json(tool: ModuleType, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    tool.export(EDMPrecond(SongUNet(**ARGUMENTS), sigma_min=0.01), tmp_path)
    text = (tmp_path / "network.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "format": 1,
        "precond": "EDMPrecond",
        "sigma_min": 0.01,
        "sigma_max": None,
        "sigma_data": 0.6,
        "network": {"class": "SongUNet", "arguments": {**ARGUMENTS, "channel_mult": [1, 2]}},
    }


def test_a_second_export_replaces_the_first(tool: ModuleType, tmp_path: Path) -> None:
    for width in (8, 16):
        net = EDMPrecond(SongUNet(**{**ARGUMENTS, "model_channels": width}))
        tool.export(net, tmp_path)
    weights = load_file(tmp_path / "network.safetensors")
    assert weights.keys() == net.model.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in net.model.state_dict().items())
    assert load_edm(tmp_path).network.config["model_channels"] == 16


def test_an_export_cut_short_has_no_description(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the old description beside new weights."""
    net = EDMPrecond(SongUNet(**ARGUMENTS))
    tool.export(net, tmp_path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tool, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        tool.export(net, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]


def wrapped(kind: type[EDMPrecond], **changes: Any) -> EDMPrecond:
    net = kind(SongUNet(**ARGUMENTS))
    for name, value in changes.items():
        setattr(net.model, name, value)
    return net


def forgetful() -> EDMPrecond:
    net = wrapped(EDMPrecond)
    del net.model.init_kwargs
    return net


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (wrapped(VPPrecond), "not a VPPrecond around a SongUNet"),
        (EDMPrecond(nn.Linear(2, 2)), "not a EDMPrecond around a Linear"),
        (nn.Linear(2, 2), "not a Linear around a NoneType"),
        (forgetful(), "does not know the keyword arguments"),
        (wrapped(EDMPrecond, init_args=(8,)), "does not know the keyword arguments"),
    ],
)
def test_what_is_no_edm_network_is_refused(
    net: Any, sentence: str, tool: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(tool.ExportError, match=sentence):
        tool.export(net, tmp_path / "out")
    assert not (tmp_path / "out").exists()


CHECKOUT = """
import torch

class SongUNet(torch.nn.Linear):
    init_args, init_kwargs = (), {"img_resolution": 8}

class EDMPrecond(torch.nn.Module):
    sigma_min, sigma_max, sigma_data = 0, float("inf"), 0.5
    def __init__(self):
        super().__init__()
        self.model = SongUNet(2, 2)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with classes of its own and two pickles of them: good.pkl and other.pkl."""
    (tmp_path / "checkout_networks.py").write_text(CHECKOUT)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        classes = importlib.import_module("checkout_networks")
        snapshots = {
            "good": {"ema": classes.EDMPrecond()},
            "other": {"net": classes.SongUNet(1, 1)},
        }
        for name, data in snapshots.items():
            (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(data))
    del sys.modules["checkout_networks"]
    return tmp_path


def test_the_script_runs_in_a_checkout_without_this_package(checkout: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['dsno'] = None; runpy.run_path(sys.argv.pop(1), None, {})"
    )
    command = [sys.executable, "-c", code.format("'__main__'"), str(SCRIPT), "good.pkl", "out"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "runs the code in it: trust its source" in done.stdout
    assert set(load_file(checkout / "out" / "network.safetensors")) == {"weight", "bias"}
    assert (checkout / "out" / "network.json").is_file()


@pytest.mark.parametrize(
    ("snapshot", "sentence"),
    [
        ("other.pkl", r"other\.pkl holds no averaged network \('ema'\)"),
        ("good.pkl", "No module named 'checkout_networks': run this inside your checkout"),
    ],
)
def test_the_script_says_what_it_cannot_export(
    snapshot: str,
    sentence: str,
    tool: ModuleType,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inside = snapshot == "other.pkl"
    monkeypatch.chdir(checkout if inside else checkout.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert tool.main([str(checkout / snapshot), str(checkout / "out")]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not (checkout / "out").exists()
    sys.modules.pop("checkout_networks", None)


@pytest.mark.parametrize("content", [None, b"", b"no pickle", pickle.dumps({"ema": 1})[:-4]])
def test_snapshots_that_cannot_be_read_are_named(
    content: bytes | None, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "snapshot.pkl"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(tool.ExportError, match=r"snapshot\.pkl cannot be read"):
        tool.read_snapshot(path)
