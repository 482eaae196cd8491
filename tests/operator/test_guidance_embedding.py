"""The guidance scale as an input of the student."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.makers import seeded, zero_temporal
from torch import Tensor, nn

from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.operator.guidance_embedding import ScalarEmbedding, SiteShifts
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.support.errors import InputError


class Tokens(nn.Module):
    """(batch, C, H, W) through a layer on (batch, H W, C) tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        tokens = self.mix(x.flatten(2).mT)
        return tokens.mT.reshape(x.shape) + c_noise[:, None, None, None] / 1000


def operator_of(unet_teacher: Any, guidance: bool, **options: Any) -> DSNO:
    torch.manual_seed(3)
    sites = ["down_blocks.*.resnets.*", "mid_block.resnets.0"]
    labels = {"class_labels": torch.zeros(1, dtype=torch.int64)} if options else None
    config = LiftConfig(sites, slices=2, guidance=guidance)
    return DSNO.from_teacher(unet_teacher(**options), config, condition=labels)


def loud(operator: DSNO) -> DSNO:
    assert operator.lifted.shifts is not None
    for layer in operator.lifted.shifts.shifts:
        nn.init.normal_(layer.weight, std=0.5)
    return operator


def test_training_starts_at_the_student_without_the_input(unet_teacher: Any) -> None:
    torch.manual_seed(0)
    plain = operator_of(unet_teacher, False)
    torch.manual_seed(0)
    guided = operator_of(unet_teacher, True)
    guided.load_state_dict({**guided.state_dict(), **plain.state_dict()})
    noise = seeded((3, 1, 8, 8))
    scales = {"guidance_scale": torch.tensor([0.0, 1.0, 7.5])}
    assert torch.equal(guided(noise, scales), plain(noise))


def test_each_sample_answers_to_its_own_scale_alone(unet_teacher: Any) -> None:
    operator = loud(operator_of(unet_teacher, True))
    noise, scales = seeded((3, 1, 8, 8)), torch.tensor([1.0, 4.0, 7.5])
    together = operator(noise, {"guidance_scale": scales})
    for i in range(3):
        alone = operator(noise[i : i + 1], {"guidance_scale": scales[i : i + 1]})
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)
    other = operator(noise, {"guidance_scale": scales.flip(0)})
    assert (other[0] - together[0]).abs().max() > 1e-3
    torch.testing.assert_close(other[1], together[1], rtol=1e-4, atol=1e-5)


def test_a_shift_is_added_behind_its_site_on_the_channels() -> None:
    teacher = Denoiser(
        Tokens(), CosineSchedule(), prediction_type="v_prediction", sample_shape=(3, 2, 2)
    )
    config = LiftConfig(["mix"], slices=2, channel_dim=-1, guidance=True)
    operator = DSNO.from_teacher(teacher, config)
    zero_temporal(operator)
    shifts = operator.lifted.shifts
    assert shifts is not None
    nn.init.zeros_(shifts.shifts[0].weight)
    shifts.shifts[0].bias.data = torch.tensor([1.0, -2.0, 0.5])
    noise, scale = seeded((2, 3, 2, 2)), {"guidance_scale": torch.ones(2)}
    shifted = operator(noise, scale)
    nn.init.zeros_(shifts.shifts[0].bias)
    t = operator.times
    moved = (shifted - operator(noise, scale))[:, -1]
    # at t = 0 the state is E = c_skip x + c_out F, and c_out = -sigma(1) is -1 to 1e-8
    expected = -torch.tensor([1.0, -2.0, 0.5]).reshape(1, 3, 1, 1).expand_as(moved)
    assert float(t[-1]) == 0
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


def test_a_copy_has_shifts_of_its_own(unet_teacher: Any) -> None:
    operator = loud(operator_of(unet_teacher, True))
    noise, scale = seeded((1, 1, 8, 8)), {"guidance_scale": torch.tensor([5.0])}
    before = operator(noise, scale)
    twin = copy.deepcopy(operator)
    assert torch.equal(twin(noise, scale), before)
    assert twin.lifted.shifts is not None
    for parameter in twin.lifted.shifts.shifts.parameters():
        nn.init.zeros_(parameter)
    assert not torch.allclose(twin(noise, scale), before, atol=1e-4)
    assert torch.equal(operator(noise, scale), before)
    nn.init.zeros_(loud(twin).lifted.shifts.embedding.mix.weight)
    assert torch.equal(operator(noise, scale), before)
    for parameter in operator.lifted.shifts.parameters():
        parameter.data.add_(1)
    assert twin.lifted.state.shifts is twin.lifted.shifts is not operator.lifted.shifts


def test_the_embedding_tells_scales_apart_by_ratio() -> None:
    embed = ScalarEmbedding(64)
    near, far = torch.tensor([2.0, 2.1]), torch.tensor([2.0, 8.0])
    gap = [(embed(v)[0] - embed(v)[1]).norm().item() for v in (near, far)]
    assert 0 < gap[0] < gap[1]
    assert SiteShifts([4, 6]).at(1, embed(near).repeat(1, 2), torch.zeros(2, 6, 3, 3), 1).shape == (
        2,
        6,
        1,
        1,
    )


def test_the_embeddings_frequencies_are_geometric_from_1_up_to_200() -> None:
    """cos(200^(k / n) log(1 + value)) and the same sines, k = 0 .. n - 1, behind a SiLU."""
    embed, values = ScalarEmbedding(8), [0.0, 1.0, 7.5]
    nn.init.eye_(embed.mix.weight)
    nn.init.zeros_(embed.mix.bias)
    expected = []
    for value in values:
        phases = [200 ** (k / 4) * math.log(1 + value) for k in range(4)]
        waves = [*map(math.cos, phases), *map(math.sin, phases)]
        expected.append([wave / (1 + math.exp(-wave)) for wave in waves])
    torch.testing.assert_close(
        embed(torch.tensor(values)), torch.tensor(expected), atol=1e-4, rtol=0
    )


def test_the_scale_must_be_there_if_and_only_if_it_is_an_input(unet_teacher: Any) -> None:
    noise = seeded((1, 1, 8, 8))
    with pytest.raises(InputError, match="give guidance_scale"):
        operator_of(unet_teacher, True)(noise)
    with pytest.raises(InputError, match="no guidance scale among its inputs"):
        operator_of(unet_teacher, False)(noise, {"guidance_scale": torch.ones(1)})
    with pytest.raises(InputError, match="at least one site"):
        LiftConfig([], guidance=True)
    only_shared = LiftConfig(["mid_block.**"], guidance=True, shared=["mid_block"])
    with pytest.raises(InputError, match="at least one site"):
        DSNO.from_teacher(unet_teacher(), only_shared)


@pytest.mark.parametrize("guidance", [None, 4.0, [1.0, 8.0]])
def test_the_saved_model_says_what_guidance_it_holds(
    guidance: Any, unet_teacher: Any, tmp_path: Path
) -> None:
    operator = operator_of(unet_teacher, isinstance(guidance, list), num_classes=4)
    if isinstance(guidance, list):
        loud(operator)
    save_pipeline(
        DSNOModel.from_operator(operator, class_frequencies=[0.25] * 4, guidance_scale=guidance),
        tmp_path / "model",
    )
    pipeline = DSNOPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.model.config.guidance_scale == guidance
    noise, labels = seeded((2, 1, 8, 8)), [0, 3]
    given = {"noise": noise, "class_labels": labels, "output_type": "raw"}
    if isinstance(guidance, list):
        condition = {
            "class_labels": torch.tensor(labels),
            "guidance_scale": torch.tensor([2.0, 2.0]),
        }
        with torch.no_grad():
            expected = operator.sample(noise, condition)
        assert torch.equal(pipeline(guidance_scale=2.0, **given).images, expected)
        middle = pipeline(guidance_scale=[4.5, 4.5], **given).images
        assert torch.equal(pipeline(**given).images, middle)
        assert not torch.allclose(middle, expected, atol=1e-4)
        with pytest.raises(InputError, match="9 is outside the range .* 1 to 8"):
            pipeline(guidance_scale=[2.0, 9.0], **given)
        with pytest.raises(InputError, match="disagree.*guidance_scale 3"):
            pipeline(guidance_scale=[2.0, 3.0, 4.0], **given)
    else:
        says = "guidance 4 distilled in" if guidance else "has no guidance"
        with pytest.raises(InputError, match=says):
            pipeline(guidance_scale=2.0, **given)
