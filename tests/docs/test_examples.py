"""The examples do what they say; own_teacher.py is tried with the other sources of teachers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from tests import makers

from dsno import DSNO, DSNOModel, DSNOPipeline, LiftConfig, solve
from dsno.diffusion import GaussianMixture

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_flow_of_the_points_is_that_of_four_normal_distributions() -> None:
    points = load("points")
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    mixture = GaussianMixture(corners, torch.full((4, 2), 0.15), points.SCHEDULE)
    noise = torch.randn(20, 2, dtype=torch.float64)
    times = torch.tensor([0.5, 0.1, 0.0], dtype=torch.float64)
    solved = solve(mixture, noise, times, method="heun", steps=100)
    torch.testing.assert_close(points.exact_flow(noise, times), solved.states, atol=2e-3, rtol=0)


def test_an_operator_of_the_points_comes_near_the_exact_flow(tmp_path: Path) -> None:
    points = load("points")
    operator, distance = points.train(60, count=512)
    assert distance < 0.2  # the noise itself is 0.43 away
    points.draw(operator).savefig(tmp_path / "points.png")
    assert Image.open(tmp_path / "points.png").size == (900, 440)


@pytest.mark.parametrize("classes", [0, 3])
def test_interpolation_walks_between_samples(classes: int, unet_teacher: Any) -> None:
    example = load("interpolate")
    labels = {"class_labels": torch.zeros(1, dtype=torch.int64)} if classes else None
    teacher = unet_teacher(channels=(8,), num_classes=classes or None)
    sites = LiftConfig(["mid_block.attentions.0"], slices=2, modes=1)
    operator = DSNO.from_teacher(teacher, sites, condition=labels)
    frequencies = [0.2, 0.3, 0.5] if classes else None
    pipeline = DSNOPipeline(DSNOModel.from_operator(operator, class_frequencies=frequencies))
    images = example.interpolate(pipeline, steps=3, seed=5)
    assert images.shape == (max(classes, 1), 3, 1, 8, 8)
    a, b = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    for c, row in enumerate(images):
        noise = torch.stack([a, (a + b) / 2**0.5, b])
        given = [c] * 3 if classes else None
        alone = pipeline(noise=noise, class_labels=given, output_type="raw").images
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)


def test_text_becomes_pictures_in_one_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    example, prompts = load("text_to_image"), tmp_path / "prompts.txt"
    source = makers.stable_diffusion_folder(tmp_path / "pipeline")
    prompts.write_text("a cat\n\na dog\n")
    run = tmp_path / "run"
    sizes = ["--count", "8", "--steps", "2", "--out", str(run)]
    words = ["text_to_image.py", str(source), "--prompts", str(prompts), *sizes]
    monkeypatch.setattr(sys, "argv", words)
    example.main()
    assert "Wrote 2 pictures of one evaluation each" in capsys.readouterr().out
    assert Image.open(run / "1.png").size == Image.open(run / "0.png").size
    assert not (run / "2.png").exists()
