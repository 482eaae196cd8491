"""One tiny model for the page: three classes, a range of guidance scales, with its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import makers

from dsno.app.served import ServedModel
from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, DSNOPipeline, DSNOTeacher
from dsno.teachers.store import denoiser_of
from dsno.teachers.unet import build_unet

FREQUENCIES = [0.2, 0.3, 0.5]
GUIDANCE = [1.0, 5.0]


@pytest.fixture(scope="session")
def pipeline() -> DSNOPipeline:
    torch.manual_seed(0)
    shape = (1, 8, 8)
    network = makers.shake(build_unet(shape, channels=(4,), norm_num_groups=2, num_classes=4))
    teacher = denoiser_of(network, Preconditioning(CosineSchedule(), "v_prediction"), shape)
    labels = {"class_labels": torch.zeros(1, dtype=torch.int64)}
    lift = LiftConfig(["mid_block.resnets.*"], slices=2, modes=1, guidance=True)
    operator = DSNO.from_teacher(teacher, lift, condition=labels)
    return DSNOPipeline(
        DSNOModel.from_operator(
            makers.shake(operator), class_frequencies=FREQUENCIES, guidance_scale=GUIDANCE
        ),
        teacher=DSNOTeacher.from_denoiser(
            GuidedDenoiser(teacher, None, {"class_labels": torch.tensor(3)})
        ),
    )


@pytest.fixture(scope="session")
def served(pipeline: DSNOPipeline) -> ServedModel:
    return ServedModel(pipeline, "tiny <model>")


@pytest.fixture(scope="session")
def folder(pipeline: DSNOPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved."""
    return makers.save(pipeline, tmp_path_factory.mktemp("saved") / "tiny")
