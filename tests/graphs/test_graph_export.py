"""A model as a graph: what other programs get is what PyTorch gives."""

from __future__ import annotations

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import makers
from torch import Tensor, nn

import dsno
from dsno.backbones.registry import BACKBONES, register
from dsno.cli import main
from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.graphs.export import export_graph
from dsno.graphs.formats import FORMATS, Format
from dsno.graphs.graph import Graph
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.support.errors import InputError, WorkError
from dsno.teachers.store import denoiser_of

SHAPE, FREQUENCIES = (1, 4, 4), [0.2, 0.3, 0.5]
RAW = {"output_type": "raw", "return_trajectory": True}
EXAMPLE = Path(__file__).parents[2] / "examples" / "sample_onnx.py"
ONNX = ("onnx", "onnxscript", "onnxruntime")


class Branching(nn.Module):
    """A network that does something else for 64 rows or more, as those of diffusers do."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.labels = nn.Embedding(3, 4)

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        h = self.first(x) + self.labels(class_labels)[:, :, None, None]
        if h.shape[0] >= 64:
            h = h * self.factor
        return self.last(nn.functional.silu(h + c_noise[:, None, None, None] / 1000))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a pipeline with classes; if `scaled`, with a guidance scale and a temporal layer too."""
    monkeypatch.setattr("dsno.backbones.registry.BACKBONES", dict(BACKBONES))
    register(Branching, lambda net: {"factor": net.factor}, sites=("first",))

    def pipeline(
        *, scaled: bool = False, factor: float = 1.0, is_textual: bool = False
    ) -> DSNOPipeline:
        teacher = denoiser_of(
            Branching(factor).eval(), Preconditioning(CosineSchedule(), "v_prediction"), SHAPE
        )
        lift = LiftConfig([], slices=4, readout="last")
        if scaled:
            lift = LiftConfig(["first"], slices=4, modes=2, guidance=True)
        labels = {"class_labels": torch.zeros(1, dtype=torch.int64)}
        operator = makers.shake(DSNO.from_teacher(teacher, lift, condition=labels))
        model = DSNOModel.from_operator(
            operator,
            class_frequencies=FREQUENCIES,
            guidance_scale=[1, 4] if scaled else None,
            is_textual=is_textual,
        )
        return DSNOPipeline(model)

    return pipeline


@pytest.mark.parametrize(
    ("scaled", "trajectory"),
    [
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_a_graph_of_torch_export_gives_what_the_pipeline_gives(
    scaled: bool, trajectory: bool, make: Any, tmp_path: Path
) -> None:
    pipeline, file = make(scaled=scaled), tmp_path / "model.pt2"
    done = export_graph(pipeline, file, to="torch-export", trajectory=trajectory)
    beyond = 16 if scaled else 64  # where there are 64 rows: 4 of each sample, or one
    assert f"with batches of 1, 3, {beyond} it differs" in done
    about = {"dsno": ""}
    graph = torch.export.load(file, extra_files=about).module()
    said = json.loads(about["dsno"])
    assert said["output"] == ("states" if trajectory else "sample")
    assert said["sample_shape"] == [1, 4, 4]
    assert said["class_frequencies"] == FREQUENCIES
    assert str(Path(dsno.__file__).parent).encode() not in file.read_bytes()
    for batch in (1, 2, 70):
        given = {"noise": torch.randn(batch, *SHAPE), "class_labels": torch.arange(batch) % 3}
        if scaled:
            given["guidance_scale"] = torch.linspace(1, 4, batch)
        expected, found = pipeline(**given, **RAW), graph(**given)
        wanted = expected.trajectory if trajectory else expected.images
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_network_that_is_another_for_large_batches_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"differs from PyTorch by .* for a batch of 64"):
        export_graph(make(factor=2.0), tmp_path / "x", to="torch-export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda x: x + 2e-4,
            r"differs from PyTorch by 2\.0e-04 for a batch of 1, more than 0\.0001",
        ),
        (lambda x: x * torch.nan, "differs from PyTorch by nan"),
        (lambda x: x[:, 0], r"gives \(1, 4, 4\) for a batch of 1, and PyTorch \(1, 1, 4, 4\)"),
        (lambda x: x + 9e-5, None),
    ],
)
def test_a_file_is_there_only_if_it_gives_what_the_model_gives(
    change: Any, says: str | None, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, file = make(), tmp_path / "model.x"
    file.write_bytes(b"earlier")

    def read(path: Path) -> Any:
        assert path.read_bytes() == b"new"
        return lambda inputs: change(pipeline(**inputs, **RAW).images)

    graph = Graph(None, ("noise", "class_labels"), "sample", (1, 2))
    monkeypatch.setattr("dsno.graphs.export.capture", lambda *_: graph)
    form = Format(lambda graph, path, about: path.write_bytes(b"new"), read)
    monkeypatch.setitem(FORMATS, "x", form)
    if says is None:
        assert "by at most 9.0e-05" in export_graph(pipeline, file, to="x")
    else:
        with pytest.raises(WorkError, match=says):
            export_graph(pipeline, file, to="x")
    assert file.read_bytes() == (b"new" if says is None else b"earlier")
    assert [path.name for path in tmp_path.iterdir()] == ["model.x"]


def test_what_has_no_graph_is_refused(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    textual = make(is_textual=True)
    latent = DSNOPipeline(make().model, vae=makers.autoencoder())
    monkeypatch.setattr("dsno.graphs.formats.find_spec", lambda name: name != "onnxscript" or None)
    for pipeline, path, to, says in (
        (textual, "x", "torch-export", "conditioned on text"),
        (latent, "x", "torch-export", "makes latents"),
        (make(), "", "torch-export", "is a folder"),
        (make(), "x", "tensorrt", "Unknown format 'tensorrt'"),
        (make(), "x", "onnx", r"needs onnxscript; install it with `pip install dsno\[onnx\]`"),
    ):
        with pytest.raises(InputError, match=says):
            export_graph(pipeline, tmp_path / path, to=to)
    assert not list(tmp_path.iterdir())


def test_a_network_that_asks_for_values_is_refused(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Branching, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        return x if bool((x > 0).all()) else self.last(self.first(x))

    pipeline = make()
    monkeypatch.setattr(Branching, "forward", forward)
    with pytest.raises(InputError, match=r"The network \(Branching\) cannot be captured"):
        export_graph(pipeline, tmp_path / "x", to="torch-export")


def test_the_command_writes_a_graph_or_says_what_does_not_go_together(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pipeline(make().model, tmp_path / "model")
    command = ["export", str(tmp_path / "model"), "--out", str(tmp_path / "x.pt2")]
    for more, says in (
        (["--trajectory"], "--trajectory is of a graph"),
        (["--to", "torch-export", "--license", "mit"], "--license is of a card"),
    ):
        assert main([*command, *more]) == 2
        assert says in capsys.readouterr().err
    asked: list[dict[str, Any]] = []

    def fake(pipeline: DSNOPipeline, path: Path, **options: Any) -> str:
        asked.append({"path": path, "teacher": pipeline.teacher, **options})
        return "done"

    monkeypatch.setattr("dsno.runs.export.export_graph", fake)
    assert main([*command, "--to", "torch-export", "--trajectory"]) == 0
    assert asked == [
        {"path": tmp_path / "x.pt2", "teacher": None, "to": "torch-export", "trajectory": True}
    ]
    assert "done" in capsys.readouterr().out


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ONNX), reason="pip install dsno[onnx] is not done"
)
def test_onnxruntime_alone_makes_the_samples(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, file = make(scaled=True), tmp_path / "model.onnx"
    assert "1, 3, 16 it differs" in export_graph(pipeline, file, to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert str(Path(dsno.__file__).parent).encode() not in file.read_bytes()
    loaded = {name: sys.modules.pop(name) for name in ("torch", "dsno")}
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "dsno", None)
    for out in ("samples.npy", "samples.png"):
        given = [file, "--num", "5", "--seed", "3", "--label", "2", "--guidance-scale", "2"]
        monkeypatch.setattr(sys, "argv", list(map(str, ["x", *given, "--out", tmp_path / out])))
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    monkeypatch.undo()
    sys.modules.update(loaded)
    noise = np.random.default_rng(3).standard_normal((5, *SHAPE), dtype=np.float32)
    expected = pipeline(
        noise=torch.from_numpy(noise), class_labels=2, guidance_scale=2.0, output_type="raw"
    ).images
    np.testing.assert_allclose(np.load(tmp_path / "samples.npy"), expected, atol=1e-5)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (5 * 32, 32)
        first = np.asarray(picture)[:32:8, :32:8]
    levels = ((expected[0, 0] + 1) * 127.5).clamp(0, 255)
    np.testing.assert_allclose(first, levels, atol=0.51)
