"""The saved model and the pipeline that samples it in one call."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.callbacks import PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors.torch import load_file, save_file

from dsno.backbones.registry import backbone_of
from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import CosineSchedule
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, DSNOPipeline, DSNOTeacher, save_pipeline
from dsno.sampling.dial import start_of
from dsno.support.errors import InputError
from dsno.teachers.pipelines import diffusers_teacher
from tests import makers
from tests.checksums import contents
from tests.devices import DEVICE, Crossings
from tests.hub import Hub

LIFT = LiftConfig(["down_blocks.*.resnets.*", "mid_block.attentions.0", "up_blocks.*.resnets.*"])
FREQUENCIES = [0.0, 0.25, 0.75]
EIGHTS = (8, np.int64(8), np.array(8), torch.tensor(8), 8.0, np.float32(8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def make(unet_teacher: Any) -> Any:
    """Make a pipeline of a tiny random operator whose temporal layers matter."""

    def pipeline(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 0) -> DSNOPipeline:
        labels = {"class_labels": torch.zeros(1, dtype=torch.int64)} if classes else None
        teacher = unet_teacher(shape, num_classes=classes or None)
        operator = DSNO.from_teacher(teacher, LIFT, condition=labels, output="state").eval()
        for part in operator.lifted.temporal.parameters():
            torch.nn.init.normal_(part, std=0.05)
        frequencies = FREQUENCIES if classes else None
        return DSNOPipeline(DSNOModel.from_operator(operator, class_frequencies=frequencies))

    return pipeline


@pytest.mark.parametrize("classes", [0, 3])
def test_a_saved_pipeline_comes_back_to_the_last_bit(
    classes: int, make: Any, tmp_path: Path
) -> None:
    pipeline, noise = make(classes=classes), torch.randn(3, 1, 8, 8)
    save_pipeline(pipeline.model, tmp_path)
    again = DSNOPipeline.from_pretrained(tmp_path)
    call = {"noise": noise, "output_type": "raw", "return_trajectory": True}
    if classes:
        call["class_labels"] = [0, 2, 1]
    first, second = pipeline(**call), again(**call)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.trajectory, second.trajectory)
    assert again.model.config.class_frequencies == (FREQUENCIES if classes else None)
    assert not again.model.training
    for (name, one), (_, other) in zip(
        pipeline.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_folder_names_the_modules_it_needs_and_holds_no_pickle(
    make: Any, tmp_path: Path
) -> None:
    """The module paths are API: moving a class breaks every folder saved before."""
    save_pipeline(make().model, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] in ("DSNOPipeline", ["dsno.pipeline", "DSNOPipeline"])
    assert index["model"] == ["dsno.pipeline", "DSNOModel"]
    files = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file())
    assert files == [
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
        "model_index.json",
    ]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["preconditioning"]["schedule"]["name"] == "cosine"
    assert config["slices"] == 4


def test_the_pipeline_samples_the_operator_it_was_made_of(unet_teacher: Any) -> None:
    operator, noise = DSNO.from_teacher(unet_teacher(), LIFT), torch.randn(2, 1, 8, 8)
    images = DSNOPipeline(DSNOModel.from_operator(operator))(noise=noise, output_type="raw").images
    with torch.no_grad():
        assert torch.equal(images, operator.sample(noise))


def test_a_model_can_be_saved_and_loaded_on_its_own(make: Any, tmp_path: Path) -> None:
    model, noise = make().model, torch.randn(2, 1, 8, 8)
    model.save_pretrained(tmp_path)
    again = DSNOModel.from_pretrained(tmp_path)
    assert torch.equal(again(noise), model(noise))
    times = torch.tensor([0.8, 0.3])
    assert torch.equal(again(noise, times=times), model(noise, times=times))


def test_the_batch_is_as_large_as_asked_or_given(make: Any) -> None:
    pipeline = make(classes=3)
    assert len(pipeline().images) == 1
    assert len(pipeline(batch_size=3).images) == 3
    assert len(pipeline(class_labels=[2, 1]).images) == 2
    assert len(pipeline(noise=torch.randn(4, 1, 8, 8)).images) == 4


def test_a_list_of_one_label_is_for_every_sample(make: Any) -> None:
    pipeline = make(classes=3)
    for one in ([2], np.array([2]), torch.tensor([2])):
        assert pipeline(batch_size=4, class_labels=one).class_labels.tolist() == [2, 2, 2, 2]
    with pytest.raises(InputError, match="class_labels 2, batch_size 4"):
        pipeline(batch_size=4, class_labels=[2, 1])
    with pytest.raises(InputError, match="noise 1, batch_size 4"):  # four equal samples
        pipeline(batch_size=4, class_labels=[2], noise=torch.randn(1, 1, 8, 8))


def test_a_list_of_one_guidance_scale_is_for_every_sample(unet_teacher: Any) -> None:
    lift = LiftConfig(LIFT.sites, slices=LIFT.slices, modes=LIFT.modes, guidance=True)
    operator = makers.shake(DSNO.from_teacher(unet_teacher(), lift))
    pipeline = DSNOPipeline(DSNOModel.from_operator(operator, guidance_scale=[1, 5]))
    noise = torch.randn(3, 1, 8, 8)
    one, each, other = (
        pipeline(noise=noise, guidance_scale=scale, output_type="raw").images
        for scale in ([2.0], [2.0, 2.0, 2.0], [2.0, 3.0, 4.0])
    )
    assert torch.equal(one, each)
    torch.testing.assert_close(one[0], other[0])
    assert not torch.allclose(one[1], other[1], atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(DSNOPipeline, DiffusionPipeline), (DSNOModel, ModelMixin)]
)
def test_folders_are_called_as_in_diffusers(
    ours: type, theirs: type, make: Any, tmp_path: Path
) -> None:
    for method in ("from_pretrained", "save_pretrained"):
        our_names, their_names = (
            [n for n in inspect.signature(getattr(c, method)).parameters if n != "self"]
            for c in (ours, theirs)
        )
        assert our_names[0] == their_names[0]
    pipeline = make()
    saved = pipeline if ours is DSNOPipeline else pipeline.model
    saved.save_pretrained(save_directory=tmp_path)
    assert isinstance(ours.from_pretrained(pretrained_model_name_or_path=tmp_path), ours)


@pytest.mark.parametrize("eight", EIGHTS, ids=repr)
def test_a_batch_size_is_a_number_in_every_type(eight: Any, make: Any) -> None:
    assert len(make()(batch_size=eight).images) == 8


def test_guidance_is_a_number_or_a_range_in_every_type(unet_teacher: Any) -> None:
    operator = DSNO.from_teacher(unet_teacher(), LIFT)
    for scale in (np.float32(3), torch.tensor(3.0), 3):
        model = DSNOModel.from_operator(operator, guidance_scale=scale)
        assert (model.config.guidance_scale, model.guidance_range) == (3.0, None)
        with pytest.raises(InputError, match="guidance 3 distilled in"):
            DSNOPipeline(model)(guidance_scale=2.0)
    rebuilt = DSNOModel(**{**model.config, "guidance_scale": np.float32(4)})
    assert json.loads(rebuilt.to_json_string())["guidance_scale"] == 4.0
    with pytest.raises(InputError, match="guidance 4 distilled in"):
        DSNOPipeline(rebuilt)(guidance_scale=2.0)
    operator = DSNO.from_teacher(unet_teacher(), dataclasses.replace(LIFT, guidance=True))
    noise = torch.randn(2, 1, 8, 8)
    for ends in ((1, 5), np.array([1, 5]), torch.tensor([1.0, 5.0])):
        model = DSNOModel.from_operator(operator, guidance_scale=ends)
        assert model.guidance_range == (1.0, 5.0)
        pipeline = DSNOPipeline(model)
        middle = pipeline(noise=noise, output_type="raw").images
        for scale in (3, np.float32(3), torch.tensor(3.0), [3.0, 3.0], np.array([3, 3])):
            given = pipeline(noise=noise, guidance_scale=scale, output_type="raw").images
            assert torch.equal(given, middle)
        for wrong in (6, float("nan"), np.float64(0.5)):
            with pytest.raises(InputError, match="outside the range"):
                pipeline(guidance_scale=wrong)
    with pytest.raises(InputError, match="a number or a range of two"):
        DSNOModel.from_operator(operator, guidance_scale="3")


def test_a_sample_of_a_generator_of_its_own_is_what_it_is_alone(make: Any) -> None:
    """The noise is that of diffusers' `randn_tensor`, the label the next draw."""
    pipeline = make(classes=3)
    together = pipeline(generator=[seeded(5), seeded(6), seeded(7)], output_type="raw")
    noise = randn_tensor((3, 1, 8, 8), generator=[seeded(5), seeded(6), seeded(7)])
    alone = [pipeline(generator=seeded(s), output_type="raw") for s in (5, 6, 7)]
    assert together.class_labels.tolist() == [int(one.class_labels) for one in alone]
    given = pipeline(noise=noise, class_labels=together.class_labels, output_type="raw").images
    assert torch.equal(together.images, given)
    for i, one in enumerate(alone):
        torch.testing.assert_close(together.images[i], one.images[0])


def test_a_list_of_one_generator_is_that_generator(make: Any) -> None:
    pipeline = make()
    first, second = (
        pipeline(batch_size=4, generator=g, output_type="raw").images
        for g in (seeded(), [seeded()])
    )
    assert torch.equal(first, second)
    drawn = torch.randn(4, 1, 8, 8, generator=seeded())
    assert torch.equal(first, pipeline(noise=drawn, output_type="raw").images)


def test_latents_is_diffusers_name_for_the_noise(make: Any) -> None:
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    one, two = (pipeline(**{k: noise}, output_type="raw").images for k in ("noise", "latents"))
    assert torch.equal(one, two)


def test_without_return_dict_the_images_come_first(make: Any) -> None:
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    result = pipeline(noise=noise, output_type="raw", return_trajectory=True)
    call = {"noise": noise, "output_type": "raw", "return_dict": False, "num_inference_steps": 1}
    (images,) = pipeline(**call)
    torch.testing.assert_close(images, result.images)
    _, trajectory, times = pipeline(**call, return_trajectory=True)
    assert torch.equal(trajectory, result.trajectory)
    assert torch.equal(times, result.times)


def test_a_pipeline_is_offloaded_between_calls(make: Any) -> None:
    """On a CPU this shows that the hooks are run and put back, and samples stay the same."""
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    before = pipeline(noise=noise, output_type="raw").images
    pipeline.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(pipeline(noise=noise, output_type="raw").images, before)
        assert [hook.model for hook in pipeline._all_hooks] == [pipeline.model]


def test_a_generator_decides_noise_and_labels(make: Any) -> None:
    pipeline = make(classes=3)
    one, same, other = (
        pipeline(batch_size=8, generator=seeded(s), output_type="pt") for s in (1, 1, 2)
    )
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.class_labels, same.class_labels)
    assert not torch.equal(one.images, other.images)


@pytest.fixture(scope="module")
def textual(tmp_path_factory: pytest.TempPathFactory) -> DSNOPipeline:
    """A latent, text-conditional student that differs for every prompt."""
    torch.manual_seed(0)
    teacher = diffusers_teacher(
        makers.stable_diffusion_folder(tmp_path_factory.mktemp("text") / "saved")
    )
    sites = backbone_of(teacher.denoiser.network).sites(teacher.denoiser.network)
    operator = DSNO.from_teacher(
        teacher.denoiser,
        LiftConfig(sites, slices=2),
        output="state",
        condition=teacher.example_condition(),
    )
    makers.shake(operator)  # the last layer of a student of an epsilon teacher is zero
    assert teacher.latents is not None
    assert teacher.text is not None
    return DSNOPipeline(
        DSNOModel.from_operator(operator.eval(), is_textual=True),
        teacher.latents.vae,
        teacher.text.encoder,
        teacher.text.tokenizer,
    )


def test_images_of_one_prompt_lie_next_to_each_other(textual: DSNOPipeline) -> None:
    """Prompts a, b and 2 images each are a, a, b, b, as diffusers orders them."""
    noise = torch.randn(4, *textual.model.operator.sample_shape)
    call = {"noise": noise, "output_type": "latent"}
    expected = textual(prompt=["a", "a", "b", "b"], **call).images
    assert not torch.allclose(expected[1], textual(prompt="b", **call).images[1], atol=1e-4)
    twice = textual(prompt=["a", "b"], num_images_per_prompt=np.int64(2), **call).images
    assert torch.equal(twice, expected)
    embeds = textual.embed(["a", "b"])
    given = textual(prompt_embeds=embeds, num_images_per_prompt=2, **call).images
    assert torch.equal(given, expected)
    assert len(textual(prompt="a", num_images_per_prompt=3).images) == 3
    assert len(textual(prompt="a", batch_size=3).images) == 3
    one, alone = (textual(prompt=p, batch_size=4, **call).images for p in (["b"], "b"))
    assert torch.equal(one, alone)
    given = textual(prompt_embeds=embeds[1:], batch_size=4, **call).images
    assert torch.equal(given, alone)
    for wrong, says in (
        ({"prompt": ["a", "b"], "batch_size": 3}, "prompts 2, batch_size 3"),
        ({"prompt": ["a"], "num_images_per_prompt": 2, "batch_size": 4}, "prompts 2, batch_size 4"),
        ({"prompt": ["a"], "num_images_per_prompt": 0}, "must be at least 1, not 0"),
        ({"prompt": [1]}, "must be text, not 1"),
        ({"prompt_embeds": embeds[0]}, r"\(batch, tokens, channels\)"),
        ({"prompt": "a", "prompt_embeds": embeds}, "either prompt or prompt_embeds"),
        ({}, "either prompt or prompt_embeds"),
    ):
        with pytest.raises(InputError, match=says):
            textual(**wrong)


def test_text_guides_the_teacher_of_a_saved_folder_too(
    textual: DSNOPipeline, tmp_path: Path
) -> None:
    saved = diffusers_teacher(makers.stable_diffusion_folder(tmp_path / "teacher"))
    guided = saved.guided(2.0, "fog")
    whole = DSNOPipeline(**textual.components)
    whole.register_modules(teacher=DSNOTeacher.from_denoiser(guided))
    whole.save_pretrained(tmp_path / "whole")
    again = DSNOPipeline.from_pretrained(tmp_path / "whole")
    noise = torch.randn(2, *textual.model.operator.sample_shape)
    embeds, nothing = textual.embed(["a", "fog"])
    start = start_of(again.model.operator.times, again.model.operator.preconditioning)
    with torch.no_grad():
        given = {"encoder_hidden_states": embeds.expand(2, -1, -1)}
        x = start.of(textual.model.operator(noise, given, start.times))
        t = torch.tensor(start.time)
        conditional = saved.denoiser(x, t, given)
        null = saved.denoiser(x, t, {"encoder_hidden_states": nothing.expand(2, -1, -1)})
    made = again(prompt="a", noise=noise, num_inference_steps=2, output_type="raw")
    torch.testing.assert_close(made.latents, null + 2 * (conditional - null), atol=1e-4, rtol=1e-4)
    assert made.images.shape == (2, 3, 16, 16)
    assert made.nfe == 3


def test_latents_are_what_the_images_are_decoded_from(textual: DSNOPipeline) -> None:
    noise = torch.randn(2, *textual.model.operator.sample_shape)
    latents = textual(prompt="a", latents=noise, output_type="latent").images
    result = textual(prompt="a", latents=noise, output_type="raw")
    assert torch.equal(result.latents, latents)
    with torch.no_grad():  # scale 0.2 and shift 0.1, as the autoencoder was saved
        decoded = textual.vae.decode(latents / 0.2 + 0.1).sample.clamp(-1, 1)
    torch.testing.assert_close(result.images, decoded)


def test_every_component_is_offloaded_in_the_order_of_use(textual: DSNOPipeline) -> None:
    call = {"prompt": "a", "output_type": "raw"}
    before = textual(generator=seeded(), **call).images
    textual.enable_model_cpu_offload(device="cpu")
    assert torch.equal(textual(generator=seeded(), **call).images, before)
    hooked = [hook.model for hook in textual._all_hooks]
    assert hooked == [textual.text_encoder, textual.model, textual.vae]
    textual.remove_all_hooks()


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "5KB"}])
def test_every_component_is_saved_and_loaded_alike(
    options: dict[str, str], textual: DSNOPipeline, tmp_path: Path
) -> None:
    textual.save_pretrained(tmp_path, **options)
    again = DSNOPipeline.from_pretrained(tmp_path)
    for name in ("model", "vae", "text_encoder"):
        weights = getattr(textual, name).state_dict()
        for key, weight in getattr(again, name).state_dict().items():
            assert torch.equal(weight, weights[key]), key
    call = {"prompt": ["a", "b"], "output_type": "raw"}
    first, second = (p(generator=seeded(), **call).images for p in (textual, again))
    torch.testing.assert_close(first, second)


def test_labels_not_asked_for_are_drawn_with_the_datas_frequencies(make: Any) -> None:
    drawn = make(classes=3)(batch_size=400, generator=seeded(), output_type="pt").class_labels
    counts = torch.bincount(drawn, minlength=3)
    assert counts[0] == 0
    assert abs(int(counts[2]) - 300) < 4 * (400 * 0.25 * 0.75) ** 0.5


def test_labels_may_be_a_number_a_list_or_a_tensor(make: Any) -> None:
    pipeline, noise = make(classes=3), torch.randn(2, 1, 8, 8)
    results = [
        pipeline(noise=noise, class_labels=labels, output_type="pt")
        for labels in (
            2,
            [2],
            [2, 2],
            np.array([2, 2]),
            torch.tensor([2, 2]),
            torch.tensor(2),
            np.int64(2),
            [np.uint8(2), 2.0],
            torch.tensor([2.0, 2.0]),
        )
    ]
    for result in results:
        assert torch.equal(result.images, results[0].images)
        assert result.class_labels.tolist() == [2, 2]
    other = pipeline(noise=noise, class_labels=[2, 1], output_type="pt").images
    torch.testing.assert_close(other[0], results[0].images[0])
    assert not torch.allclose(other[1], results[0].images[1], atol=1e-4)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_output_types(channels: int, mode: str, make: Any) -> None:
    """`pt` and `np` are those of diffusers: [0, 1], clamped, not rounded to bytes."""
    pipeline, noise = make((channels, 8, 8)), torch.randn(2, channels, 8, 8)
    pipeline.model.operator.lifted.network.conv_out.weight.data *= 9
    raw, latent, tensor, array, numbers, pictures = (
        pipeline(noise=noise, output_type=kind).images
        for kind in ("raw", "latent", "pt", "np", "numpy", "pil")
    )
    assert raw.shape == (2, channels, 8, 8)
    assert raw.min() < -1  # what is clamped elsewhere
    assert torch.equal(latent, raw)
    expected = VaeImageProcessor().postprocess(raw, "pt")
    torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(array, numbers)
    assert all(isinstance(p, Image.Image) and p.mode == mode for p in pictures)
    pixels = np.asarray(pictures[1]).reshape(8, 8, channels)
    np.testing.assert_array_equal(pixels, (array[1] * 255).round().astype(np.uint8))


def test_the_trajectory_ends_in_the_sample(make: Any) -> None:
    result = make()(batch_size=2, output_type="raw", return_trajectory=True)
    assert result.trajectory.shape == (2, 4, 1, 8, 8)
    assert result.times.tolist() == [0.5625, 0.25, 0.0625, 0]
    assert torch.equal(result.trajectory[:, -1], result.images)


def test_the_trajectory_may_be_asked_at_any_times(make: Any) -> None:
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    call = {"noise": noise, "output_type": "raw", "return_trajectory": True}
    trained, asked = pipeline(**call), pipeline(**call, times=[1.0, 0.25, 0.1, 0.05, 0.0])
    assert asked.trajectory.shape == (2, 5, 1, 8, 8)
    assert asked.times.tolist() == [1.0, 0.25, 0.1, 0.05, 0.0]
    torch.testing.assert_close(asked.images, trained.images, rtol=0, atol=1e-5)
    for here, there in ((1, 1), (4, 3)):
        torch.testing.assert_close(
            asked.trajectory[:, here], trained.trajectory[:, there], atol=1e-5, rtol=1e-4
        )


# -------------------------------------------------------------------------------- more steps


@pytest.mark.parametrize("scale", [None, 3.0, (1.0, 5.0)])
def test_a_second_step_is_the_teachers_estimate_of_the_operators_state(
    scale: Any, unet_teacher: Any, tmp_path: Path
) -> None:
    """By the same network without this package's guidance, also from a saved folder."""
    shape, labels = (1, 8, 8), torch.tensor([0, 1])
    teacher = unet_teacher(shape, channels=(4,), norm_num_groups=2, num_classes=3)  # 2: no class
    one = {"class_labels": labels[:1]}
    lift = LiftConfig(["mid_block.resnets.0"], guidance=isinstance(scale, tuple))
    operator = makers.shake(DSNO.from_teacher(teacher, lift, condition=one))
    model = DSNOModel.from_operator(operator, class_frequencies=[0.5, 0.5], guidance_scale=scale)
    fixed = None if isinstance(scale, tuple) else scale
    null = {"class_labels": torch.tensor(2)}
    guided = teacher if scale is None else GuidedDenoiser(teacher, fixed, null)
    pipeline = DSNOPipeline(model, teacher=DSNOTeacher.from_denoiser(guided))
    noise, t = torch.randn(2, *shape), torch.tensor(0.0625)  # the smallest trained time above 0

    given = {"class_labels": labels}
    weights = torch.full((2,), 3.0)
    with torch.no_grad():
        named = {"guidance_scale": weights} if isinstance(scale, tuple) else {}
        x = operator(noise, given | named)[:, 2]
        expected = teacher(x, t, given)
        if scale is not None:
            nothing = teacher(x, t, {"class_labels": torch.tensor([2, 2])})
            expected = nothing + 3 * (expected - nothing)
    pipeline.save_pretrained(tmp_path)
    call = {"noise": noise, "class_labels": labels, "output_type": "raw"}
    for sampled in (pipeline, DSNOPipeline.from_pretrained(tmp_path)):
        made = sampled(num_inference_steps=2, **call)
        torch.testing.assert_close(made.images, expected, atol=1e-5, rtol=1e-5)
        assert made.nfe == (2 if scale is None else 3)
        assert sampled(num_inference_steps=4, **call).nfe == (4 if scale is None else 7)
        assert torch.equal(sampled(**call).images, pipeline(**call).images)
    assert sampled(**call).nfe == 1
    with torch.no_grad():
        alone = operator.sample(noise, given | named)
    assert torch.equal(pipeline(**call, num_inference_steps=1).images, alone)
    with pytest.raises(InputError, match="leave out return_trajectory"):
        pipeline(**call, num_inference_steps=2, return_trajectory=True)
    without = DSNOPipeline.from_pretrained(tmp_path, teacher=None)
    with pytest.raises(InputError, match="saved without its teacher"):
        without(**call, num_inference_steps=2)
    other = unet_teacher((1, 4, 4), channels=(4,), norm_num_groups=2)
    without.register_modules(teacher=DSNOTeacher.from_denoiser(other))
    with pytest.raises(InputError, match="another shape or another schedule"):
        without(**call, num_inference_steps=2)


def test_the_teacher_goes_on_from_the_last_trained_time_that_is_quiet_enough() -> None:
    """The noise of the cosine schedule is tan(pi t / 2) times the data."""
    meaning = Preconditioning(CosineSchedule(), "v_prediction")
    trained = start_of(torch.tensor([0.25, 0.0625, 0.0]), meaning)
    assert (trained.time, trained.times) == (0.0625, None)
    quiet = start_of(torch.tensor([0.25, 0.0]), meaning)
    assert math.tan(math.pi * quiet.time / 2) == pytest.approx(0.2, rel=1e-3)
    assert quiet.times.tolist() == [quiet.time]
    with pytest.raises(InputError, match=r"student\.slices of 2 or more"):
        start_of(torch.tensor([0.0]), meaning)


@pytest.fixture
def dialled(unet_teacher: Any) -> DSNOPipeline:
    """A pipeline with its teacher, for more than one step."""
    teacher = unet_teacher(channels=(4,), norm_num_groups=2, middle_attention=False)
    operator = makers.shake(DSNO.from_teacher(teacher, LiftConfig(["mid_block.resnets.0"])))
    return DSNOPipeline(
        DSNOModel.from_operator(operator), teacher=DSNOTeacher.from_denoiser(teacher)
    )


def test_a_callback_sees_every_step_and_may_change_the_state(dialled: DSNOPipeline) -> None:
    noise, seen = torch.randn(2, 1, 8, 8), []
    call = {"noise": noise, "num_inference_steps": 3, "output_type": "raw"}

    def look(pipeline: Any, index: int, t: torch.Tensor, tensors: dict[str, Any]) -> Any:
        assert pipeline is dialled
        seen.append((index, float(t), tensors["latents"]))
        return tensors if index < 2 else None

    plain = dialled(**call).images
    looked = dialled(**call, callback_on_step_end=look).images
    assert torch.equal(plain, looked)
    assert [index for index, _, _ in seen] == [0, 1, 2]
    times = [t for _, t, _ in seen]
    assert times[:2] == [1.0, 0.0625]  # the operator's, then the smallest trained time above 0
    assert times[2] == pytest.approx(0.0625 / 4)  # halfway on a quadratic grid
    states = dialled(noise=noise, return_trajectory=True, output_type="raw").trajectory
    torch.testing.assert_close(seen[0][2], states[:, -2])
    assert torch.equal(seen[2][2], plain)

    changed = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    class Change(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipeline: Any, index: int, t: Any, tensors: Any) -> Any:
            return {"latents": changed} if index == 1 else tensors

    made = dialled(**call, callback_on_step_end=Change()).images
    with torch.no_grad():  # the last step is the teacher's estimate of the changed state
        expected = dialled.teacher(changed.float(), torch.tensor(times[2]))
    torch.testing.assert_close(made, expected)


def test_a_callback_that_cannot_be_called_is_refused(dialled: DSNOPipeline) -> None:
    def shrink(pipeline: Any, index: int, t: Any, tensors: dict[str, Any]) -> Any:
        return {"latents": tensors["latents"][:1]}

    two = {"num_inference_steps": 2, "batch_size": 2}
    for call, says in (
        ({"callback_on_step_end": shrink}, "give num_inference_steps of 2 or more"),
        ({"callback_on_step_end": 3, **two}, "must be a function, not 3"),
        ({"callback_on_step_end": shrink, **two}, r"shape \(2, 1, 8, 8\), not a tensor of .*\(1,"),
        ({"callback_on_step_end": lambda *_: 1, **two}, "must return its dictionary.*not 1"),
        (
            {
                "callback_on_step_end": shrink,
                "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
                **two,
            },
            "sees 'latents', not 'prompt_embeds'",
        ),
    ):
        with pytest.raises(InputError, match=says):
            dialled(**call)


# -------------------------------------------------------------------------------- devices


def test_images_cross_to_the_host_once_and_as_bytes(make: Any) -> None:
    pipeline = make((3, 8, 8), classes=3).to(DEVICE)
    with Crossings() as crossings:
        made = pipeline(batch_size=4, class_labels=1).images
    assert len(made) == 4
    assert crossings.up == [((4,), torch.int64)]  # noise is drawn where it is used
    [(shape, dtype)] = crossings.down
    assert (math.prod(shape), dtype) == (4 * 3 * 8 * 8 + 1, torch.uint8)  # and whether one is NaN
    assert crossings.reads == 0


def test_noise_that_is_on_the_device_stays_there(make: Any) -> None:
    pipeline = make().to(DEVICE)
    noise = torch.zeros(2, 1, 8, 8, device=DEVICE)
    with Crossings() as crossings:
        made = pipeline(noise=noise, output_type="pt", return_trajectory=True)
    assert made.images.device == made.trajectory.device == DEVICE
    assert (crossings.up, crossings.down, crossings.reads) == ([], [], 0)


class OnDevice(torch.Generator):
    """A generator of the device, which draws nothing."""

    device = DEVICE


def test_a_generator_of_the_device_draws_there(make: Any) -> None:
    pipeline = make().to(DEVICE)
    for generators in (OnDevice(), [OnDevice(), OnDevice()]):
        with Crossings() as crossings:
            made = pipeline(batch_size=2, generator=generators, output_type="raw").images
        assert made.device == DEVICE
        assert (crossings.up, crossings.down) == ([], [])


@pytest.mark.parametrize("output_type", ["raw", "latent", "pt"])
def test_samples_are_kept_though_a_cuda_graph_uses_its_memory_again(
    output_type: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, memory = make(), torch.empty(2, 4, 1, 8, 8)
    forward = pipeline.model.forward

    def graph(*given: Any, **named: Any) -> torch.Tensor:
        return memory.copy_(forward(*given, **named))

    monkeypatch.setattr(pipeline.model, "forward", graph)
    call = {"output_type": output_type, "return_trajectory": True, "batch_size": 2}
    first = pipeline(generator=seeded(1), **call)
    images, trajectory = first.images.clone(), first.trajectory.clone()
    second = pipeline(generator=seeded(2), **call)
    assert torch.equal(first.images, images)
    assert torch.equal(first.trajectory, trajectory)
    assert not torch.equal(second.images, images)


def test_the_model_compiles_whole_and_once_and_makes_nothing_on_the_host(
    unet_teacher: Any,
) -> None:
    """What a CUDA graph of `pipeline.model.compile(mode="reduce-overhead")` needs."""
    teacher = unet_teacher(channels=(4,), norm_num_groups=2, middle_attention=False, num_classes=3)
    labels = {"class_labels": torch.zeros(1, dtype=torch.int64)}
    operator = DSNO.from_teacher(teacher, LiftConfig(["mid_block.resnets.0"]), condition=labels)
    model = DSNOModel.from_operator(operator, class_frequencies=FREQUENCIES)
    pipeline, devices = DSNOPipeline(model).to(DEVICE), []

    def look(graph: Any, inputs: Any) -> Any:
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        devices.append({v.device.type for v in values if isinstance(v, torch.Tensor)})
        return graph.forward

    pipeline.model.compile(backend=look, fullgraph=True)
    for label in (0, 2):
        made = pipeline(class_labels=label, output_type="raw").images
    assert made.shape == (1, 1, 8, 8)
    assert devices == [{DEVICE.type}]


def test_a_compiled_model_is_saved_as_it_was(make: Any, tmp_path: Path) -> None:
    pipeline = make()
    pipeline.save_pretrained(tmp_path / "plain")
    pipeline.model = torch.compile(pipeline.model, backend="eager")
    pipeline.save_pretrained(tmp_path / "compiled")
    folders = tmp_path / "plain", tmp_path / "compiled"
    plain, compiled = (contents(folder) for folder in folders)
    assert plain.pop("README.md") != compiled.pop("README.md")  # each names its folder
    assert plain == compiled


def test_a_pipeline_runs_in_half_precision(make: Any) -> None:
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    exact = pipeline(noise=noise, output_type="raw").images
    rough = pipeline.to(torch.bfloat16)(noise=noise, output_type="raw").images
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


REFUSED: dict[int, list[tuple[dict[str, Any], str]]] = {
    0: [
        ({"batch_size": 0}, "at least 1, not 0"),
        ({"batch_size": 2.5}, "number of samples must be a whole number, not 2.5"),
        ({"batch_size": True}, "number of samples must be a whole number, not True"),
        ({"batch_size": [8]}, "number of samples must be a whole number"),
        ({"generator": 0}, r"torch\.Generator\(\)\.manual_seed\(0\), not 0"),
        ({"generator": []}, "generators is empty"),
        ({"generator": [seeded(), seeded()], "batch_size": 3}, "generator 2, batch_size 3"),
        ({"num_inference_steps": 50}, "saved without its teacher.*dsno export"),
        ({"num_inference_steps": 0}, "inference steps must be at least 1, not 0"),
        ({"num_inference_steps": 1.5}, "inference steps must be a whole number, not 1.5"),
        ({"num_images_per_prompt": 2}, "give batch_size"),
        ({"noise": torch.zeros(1), "latents": torch.zeros(1)}, "one of the two"),
        ({"guidance_scale": 2.0}, "has no guidance"),
        ({"prompt": "a cat"}, "takes no prompt"),
        ({"return_trajectory": True, "times": []}, "times is empty"),
        ({"return_trajectory": True, "times": "now"}, "Times must be numbers"),
        ({"class_labels": 1}, "unconditional"),
        ({"output_type": "pli"}, "'pil'"),
        ({"noise": torch.zeros(2, 1, 8, 8), "batch_size": 3}, "noise 2, batch_size 3"),
        ({"noise": torch.zeros(2, 3, 8, 8)}, r"\(1, 8, 8\), but the noise has \(3, 8, 8\)"),
        ({"return_trajectory": True, "times": [2.0]}, r"in \[0, 1\]"),
        ({"height": 512, "width": 8}, r"images of 8 x 8.*leave out height=512"),
        ({"negative_prompt": "blurry"}, "distilled in"),
        ({"timesteps": [999, 0]}, "leave it out, or ask for states at times of your own"),
        ({"eta": 1.0}, "adds no noise"),
        ({"image": torch.zeros(1)}, "begins from noise"),
        ({"callback": print}, "called callback_on_step_end"),
        ({"num_inference_step": 2}, "did you mean 'num_inference_steps'"),
    ],
    3: [
        ({"class_labels": [True, False]}, "whole numbers"),
        ({"class_labels": "cat"}, "whole numbers, not 'cat'"),
        ({"class_labels": [[0, 1], [1, 2]]}, r"not of shape \(2, 2\)"),
        ({"class_labels": [0, 3]}, "Class 3 is out of range.*0 to 2"),
        ({"class_labels": -1}, "Class -1 is out of range"),
        ({"class_labels": torch.tensor([1.7])}, "whole numbers"),
        ({"class_labels": [0, 1], "batch_size": 3}, "class_labels 2"),
    ],
}


@pytest.mark.parametrize("classes", REFUSED)
def test_an_impossible_request_is_refused(classes: int, make: Any) -> None:
    pipeline = make(classes=classes)
    for call, message in REFUSED[classes]:
        with pytest.raises(InputError, match=message):
            pipeline(**call)


def test_what_others_are_asked_for_is_taken_where_it_changes_nothing(make: Any) -> None:
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    before = pipeline(noise=noise, output_type="raw").images
    asked = {"height": 8, "width": 8, "eta": 0.0, "negative_prompt": None, "timesteps": None}
    after = pipeline(noise=noise, output_type="raw", num_images_per_prompt=None, **asked).images
    assert torch.equal(before, after)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "float16"}, "floating one of torch, such as dtype=torch.bfloat16, not 'float16'"),
    ({"torch_dtype": torch.int8}, "not torch.int8"),
    ({"dtype": torch.float16, "torch_dtype": torch.float32}, "give one of them"),
    ({"use_safetensors": False}, "never pickles"),
    ({"trust_remote_code": True}, "code is never run"),
    ({"custom_pipeline": "lpw_stable_diffusion"}, "code is never run"),
    ({"device_map": "cuda"}, r"then call \.to\(\"cuda\"\)"),
    ({"revisio": "v2"}, "did you mean 'revision'"),
]


def test_options_that_would_do_nothing_are_refused(make: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    for load, path in ((DSNOPipeline, tmp_path), (DSNOModel, tmp_path / "model")):
        for options, says in OPTIONS:
            with pytest.raises(InputError, match=says):
                load.from_pretrained(path, **options)
        for name in ("dtype", "torch_dtype"):
            with warnings.catch_warnings():  # diffusers warns of the older name
                warnings.simplefilter("error")
                loaded = load.from_pretrained(
                    path, **{name: torch.bfloat16}, use_safetensors=True, device_map=None
                )
            assert loaded.dtype == torch.bfloat16


SAVES = {
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "20KB"},
    "shards of a variant": {"max_shard_size": "20KB", "variant": "fp16"},
}


@pytest.mark.parametrize("how", SAVES)
def test_every_way_to_save_is_a_way_to_load(how: str, make: Any, tmp_path: Path) -> None:
    """With the variant named and without; as a pipeline, by diffusers' own loader, and alone."""
    pipeline, noise, options = make(), torch.randn(2, 1, 8, 8), SAVES[how]
    before = pipeline(noise=noise, output_type="raw").images
    pipeline.save_pretrained(tmp_path / "whole", **options)
    pipeline.model.save_pretrained(tmp_path / "alone", **options)
    files = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "whole" / "model").iterdir())
    assert ("diffusion_pytorch_model.fp16" in files[1]) == ("variant" in options)
    assert (len(files) > 3) == ("max_shard_size" in options)
    named = {k: v for k, v in options.items() if k == "variant"}
    for load in ({}, named):
        again = DSNOPipeline.from_pretrained(tmp_path / "whole", **load)
        assert torch.equal(again(noise=noise, output_type="raw").images, before)
        inside = DSNOModel.from_pretrained(tmp_path / "whole", subfolder="model", **load)
        alone = DSNOModel.from_pretrained(tmp_path / "alone", **load)
        assert torch.equal(alone(noise)[:, -1], inside(noise)[:, -1])
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "whole", **named)
    assert type(theirs) is DSNOPipeline
    assert torch.equal(theirs(noise=noise, output_type="raw").images, before)


@pytest.mark.parametrize("after", [{}, {"max_shard_size": "40KB"}])
@pytest.mark.parametrize("variant", [{}, {"variant": "fp16"}])
def test_a_model_of_many_files_is_saved_over(
    after: dict[str, str], variant: dict[str, str], make: Any, tmp_path: Path
) -> None:
    pipeline, noise = make(), torch.randn(2, 1, 8, 8)
    pipeline.save_pretrained(tmp_path, max_shard_size="10KB", **variant)
    for parameter in pipeline.model.parameters():
        parameter.data.add_(0.01)
    pipeline.save_pretrained(tmp_path, **after, **variant)
    again = DSNOPipeline.from_pretrained(tmp_path)
    before, found = (p(noise=noise, output_type="raw").images for p in (pipeline, again))
    assert torch.equal(found, before)


def test_a_file_is_not_saved_into(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    for saved in (make(), make().model):
        with pytest.raises(InputError, match="file is not a folder; give a folder to save into"):
            saved.save_pretrained(path)
    assert path.read_text() == "mine"


def test_half_precision_is_saved_and_loaded(make: Any, tmp_path: Path) -> None:
    pipeline, noise = make().to(torch.float16), torch.randn(2, 1, 8, 8)
    before = pipeline(noise=noise, output_type="raw").images
    pipeline.save_pretrained(tmp_path, variant="fp16")
    stored = load_file(tmp_path / "model" / "diffusion_pytorch_model.fp16.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    half = DSNOPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert torch.equal(half(noise=noise, output_type="raw").images, before)
    whole = DSNOPipeline.from_pretrained(tmp_path)
    assert whole.model.dtype == torch.float32
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, stored[name].float()), name


def test_what_could_not_be_loaded_is_not_saved(make: Any, tmp_path: Path) -> None:
    pipeline = make()
    for thing in (pipeline, pipeline.model):
        with pytest.raises(InputError, match="safetensors only"):
            thing.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())


def test_a_variant_that_is_not_there_is_refused(make: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path, variant="fp16")
    for load, path in ((DSNOPipeline, tmp_path), (DSNOModel, tmp_path / "model")):
        with pytest.raises(InputError, match=r"no weights of the variant 'bf16'; there are 'fp16'"):
            load.from_pretrained(path, variant="bf16")


def test_a_model_lacking_a_weight_is_refused(make: Any, tmp_path: Path) -> None:
    """The library would fill it with random numbers and log a line."""
    save_pipeline(make().model, tmp_path)
    file = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["operator.lifted.network.conv_in.bias"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"missing: operator\.lifted\.network\.conv_in\.bias"):
        DSNOPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("how", ["plain", *SAVES])
def test_a_model_on_the_hub_is_downloaded_with_the_weights_it_has(
    how: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, noise = make(), torch.randn(1, 1, 8, 8)
    pipeline.save_pretrained(tmp_path / "hub", **SAVES.get(how, {}))
    (tmp_path / "hub" / "model" / "notes.bin").write_bytes(b"pickle")
    (tmp_path / "hub" / "dsno.pipeline.py").write_text("raise SystemExit")
    if how == "plain":  # half precision beside it is left where it is
        pipeline.save_pretrained(tmp_path / "hub", variant="fp16")
    hub = Hub(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    options = {"revision": "v2", "token": "t", "cache_dir": "c", "local_files_only": True}
    again = DSNOPipeline.from_pretrained("owner/name", **options)
    assert torch.equal(
        again(noise=noise, output_type="raw").images,
        pipeline(noise=noise, output_type="raw").images,
    )
    assert all(asked == options for asked in hub.asked)
    assert not {"model/notes.bin", "dsno.pipeline.py"} & set(hub.files)
    assert any("fp16" in name for name in hub.files) == ("variant" in SAVES.get(how, {}))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model_index\.json.*dsno train"):
        DSNOPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["model_index.json", "model/config.json", "model/diffusion_pytorch_model.safetensors"]
)
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_model_is_refused_in_one_sentence(
    name: str, damage: str, make: Any, tmp_path: Path
) -> None:
    save_pipeline(make().model, tmp_path)
    file = tmp_path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else file.stat().st_size // 2])
    with pytest.raises(InputError) as caught:
        DSNOPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_backbone_the_package_cannot_build_is_refused(make: Any) -> None:
    config = {k: v for k, v in dict(make().model.config).items() if not k.startswith("_")}
    with pytest.raises(InputError, match="class .UNet3DModel. is not known"):
        DSNOModel(**{**config, "backbone": "UNet3DModel"})
