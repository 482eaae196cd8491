"""Teachers from diffusers folders, against the pipelines they were saved from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import makers
from tests.hub import Hub
from tests.makers import seeded, zero_temporal

from dsno.backbones.registry import BACKBONES, backbone_of
from dsno.backbones.safe_loading import weight_variants
from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import BetaSchedule, CosineSchedule, EDMSchedule
from dsno.diffusion.solvers import solve
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.support.errors import InputError
from dsno.teachers.components import NETWORKS
from dsno.teachers.options import TeacherOptions, frozen_fields
from dsno.teachers.pipelines import diffusers_teacher, hub_teacher
from dsno.teachers.store import Teacher, load_teacher, save_teacher

FOLDERS: dict[str, Callable[[Path], Path]] = {
    "ddpm": makers.ddpm_folder,
    "classes": lambda folder: makers.ddpm_folder(folder, num_class_embeds=5),
    "edm": lambda folder: makers.ddpm_folder(folder, diffusers.EDMEulerScheduler()),
    "flow": lambda folder: makers.ddpm_folder(folder, diffusers.FlowMatchEulerDiscreteScheduler()),
    "unconditional latent": makers.ldm_folder,
    "text": makers.stable_diffusion_folder,
    "transformer": makers.dit_folder,
}


def rows(teacher: Teacher, count: int = 2) -> dict[str, Any] | None:
    example = teacher.example_condition()
    return example and {k: v.repeat(count, *[1] * (v.ndim - 1)) for k, v in example.items()}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: Any, tmp_path_factory: Any) -> Path:
    torch.manual_seed(0)
    return FOLDERS[request.param](tmp_path_factory.mktemp("pipeline") / "saved")


def test_a_teacher_survives_our_own_folder_to_the_last_bit(folder: Path, tmp_path: Path) -> None:
    teacher = diffusers_teacher(folder)
    save_teacher(teacher, tmp_path / "teacher")
    again = load_teacher(tmp_path / "teacher")
    x, t = seeded((2, *teacher.denoiser.sample_shape)), torch.tensor([0.3, 1.0])
    assert torch.equal(again.denoiser(x, t, rows(again)), teacher.denoiser(x, t, rows(teacher)))
    assert again.denoiser.clip_sample == teacher.denoiser.clip_sample
    for key in ("num_classes", "null_class", "origin"):
        assert getattr(again, key) == getattr(teacher, key)
    if teacher.latents is not None:
        assert again.latents is not None
        assert torch.equal(again.latents.decode(x), teacher.latents.decode(x))


def test_a_student_starts_as_the_lifted_teacher(folder: Path) -> None:
    """With temporal weights at zero every slice is the teacher's network at its own time."""
    teacher = diffusers_teacher(folder)
    kind = backbone_of(teacher.denoiser.network)
    sites = kind.sites(teacher.denoiser.network)
    operator = DSNO.from_teacher(
        teacher.denoiser,
        LiftConfig(sites, slices=2, channel_dim=kind.channel_dim),
        output="state",
        condition=teacher.example_condition(),
    )
    zero_temporal(operator)
    noise, condition = seeded((2, *teacher.denoiser.sample_shape)), rows(teacher)
    pre, one = teacher.denoiser.preconditioning, torch.ones((), dtype=torch.float64)
    if pre.prediction_type == "epsilon":
        assert not operator(noise, condition).any()  # E = F, from a zeroed last layer
        return
    c = pre.coefficients(one)
    x = noise * pre.schedule.sigma(one).float()
    told = pre.c_noise(operator.times[-1:]).float().expand(2)
    f = kind.call(teacher.denoiser.network, c.into.float() * x, told, condition or {})
    expected = c.skip.float() * x + c.out.float() * f
    got = operator(noise, condition)[:, -1]
    torch.testing.assert_close(
        got, expected / pre.sigma_data * pre.sigma_data, rtol=1e-4, atol=1e-5
    )


def test_sampling_is_that_of_the_pipeline(tmp_path: Path) -> None:
    """Two DDIM steps, from 99 by 66 to 33, and the clean estimate there, written out and solved."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100, clip_sample_range=1.3)
    folder = makers.ddpm_folder(tmp_path / "saved", scheduler)
    unet = diffusers.UNet2DModel.from_pretrained(
        folder / "unet", use_safetensors=True, low_cpu_mem_usage=False
    ).eval()
    x = seeded((2, 3, 8, 8))
    teacher = diffusers_teacher(folder)
    start = teacher.denoiser.schedule.sigma(torch.ones(1, dtype=torch.float64))
    times = torch.tensor([33 / 99, 0.0], dtype=torch.float64)
    solution = solve(teacher.denoiser, x.double() / start, times, method="ddim", steps=3)
    for got, expected in zip(solution.states.unbind(1), _ddim(unet, scheduler, x), strict=True):
        torch.testing.assert_close(got.float(), expected, rtol=1e-4, atol=1e-4)


def _ddim(unet: Any, scheduler: Any, noise: Any) -> tuple[Any, Any]:
    """The state at the last step, and the clean estimate there."""
    x, steps = noise.double(), [99, 66, 33]
    with torch.no_grad():
        for k, following in zip(steps, [*steps[1:], None], strict=True):
            bar = scheduler.alphas_cumprod[k].double()
            eps = unet(x.float(), k).sample.double()
            clean = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1.3, 1.3)
            if following is None:
                return x.float(), clean.float()
            eps = (x - bar.sqrt() * clean) / (1 - bar).sqrt()
            bar = scheduler.alphas_cumprod[following].double()
            x = bar.sqrt() * clean + (1 - bar).sqrt() * eps
    raise AssertionError


def test_latents_are_decoded_with_the_models_scale_and_shift(tmp_path: Path) -> None:
    folder = makers.stable_diffusion_folder(tmp_path / "saved")
    teacher = diffusers_teacher(folder)
    assert teacher.latents is not None
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval()
    z = seeded((3, 4, 8, 8))
    with torch.no_grad():
        expected = vae.decode(z / 0.2 + 0.1).sample.clamp(-1, 1)
    torch.testing.assert_close(teacher.latents.decode(z, batch_size=2), expected)


def test_latents_may_be_normalised_per_channel() -> None:
    vae = makers.autoencoder(
        scaling_factor=0.5, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]
    )
    from dsno.backbones.autoencoder import Latents

    z = seeded((2, 4, 8, 8))
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    shift = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(1, 4, 1, 1)
    with torch.no_grad():
        expected = vae.decode(z * scale / 0.5 + shift).sample.clamp(-1, 1)
    torch.testing.assert_close(Latents(vae).decode(z), expected)


def test_prompts_are_embedded_as_the_pipeline_embeds_them(tmp_path: Path) -> None:
    folder = makers.stable_diffusion_folder(tmp_path / "saved")
    teacher = diffusers_teacher(folder)
    assert teacher.text is not None
    pipeline = diffusers.StableDiffusionPipeline(
        vae=makers.autoencoder(),
        text_encoder=teacher.text.encoder,
        tokenizer=teacher.text.tokenizer,
        unet=makers.text_unet(),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    prompts = ["a cat", "", "many words that are cut at six tokens"]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    torch.testing.assert_close(teacher.text.encode(prompts, batch_size=2), expected)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_stable_diffusion_does_not_clip_latents_as_its_pipeline_does_not(tmp_path: Path) -> None:
    folder = makers.stable_diffusion_folder(tmp_path / "saved")
    diffusers.DDIMScheduler(clip_sample=True).save_pretrained(folder / "scheduler")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, low_cpu_mem_usage=False
    )
    assert pipeline.scheduler.config.clip_sample is False
    assert diffusers_teacher(folder).denoiser.clip_sample is None
    pixels = makers.ddpm_folder(tmp_path / "pixels", diffusers.DDIMScheduler())
    assert diffusers_teacher(pixels).denoiser.clip_sample == 1.0


def test_the_transformer_has_time_behind_every_block_and_keeps_its_labels(tmp_path: Path) -> None:
    teacher = diffusers_teacher(makers.dit_folder(tmp_path / "saved"))
    kind = backbone_of(teacher.denoiser.network)
    assert kind.sites(teacher.denoiser.network) == [f"transformer_blocks.{i}" for i in range(3)]
    assert (teacher.num_classes, teacher.null_class) == (5, 5)
    teacher.denoiser.network.train()  # its own label dropping would make this random
    x, labels = seeded((64, 4, 8, 8)), torch.arange(64) % 5
    x, t = x[:1].repeat(64, 1, 1, 1), torch.tensor(0.5)
    out = teacher.denoiser(x, t, {"class_labels": labels})
    torch.testing.assert_close(out[:5], out[5:10])


def test_a_network_without_a_scheduler_needs_its_meaning_said(tmp_path: Path) -> None:
    makers.unet2d().save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match="prediction_type=.*schedule"):
        diffusers_teacher(tmp_path / "unet")
    for half in ({"prediction_type": "v_prediction"}, {"schedule": CosineSchedule()}):
        assert "prediction_type=... schedule.name=..." in refusal(tmp_path / "unet", **half)
    stated = TeacherOptions("v_prediction", CosineSchedule())
    teacher = diffusers_teacher(tmp_path / "unet", stated)
    expected = Preconditioning(CosineSchedule(), "v_prediction")
    assert teacher.denoiser.preconditioning == expected


def test_the_first_pipelines_kept_everything_in_one_folder(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32 is such a one."""
    folder = makers.ddpm_folder(tmp_path / "saved")
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    assert diffusers_teacher(folder).denoiser.clip_sample == 1.0


def test_the_full_size_ddpm_of_cifar10_comes_back(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32's configuration: 35.7M parameters, epsilon on linear betas."""
    unet = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    ).eval()
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large")
    folder = makers.save(diffusers.DDPMPipeline(unet, scheduler), tmp_path / "saved")
    teacher = diffusers_teacher(folder)
    assert sum(p.numel() for p in teacher.denoiser.network.parameters()) == 35_746_307
    x = seeded((1, 3, 32, 32))
    with torch.no_grad():
        eps = unet(x, 500).sample
    bar = scheduler.alphas_cumprod[500]
    expected = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
    got = teacher.denoiser(x, torch.tensor(500 / 999, dtype=torch.float64))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    kind = backbone_of(teacher.denoiser.network)
    assert len(kind.sites(teacher.denoiser.network)) == 4 * 2 + 1 + 4 * 3


# ---------------------------------------------------------------------------- bad input


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        diffusers_teacher(folder, TeacherOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel, which is not supported"),
        ({"_class_name": None}, "without a class name"),
        ({"down_block_types": ["DownBlock2D", "FancyBlock2D"]}, "FancyBlock2D"),
        ({"time_embedding_type": "fourier"}, "fourier time embedding"),
        ({"class_embed_type": "identity"}, "class_embed_type = 'identity'"),
        ({"in_channels": 5}, "conv_in.weight"),
        ({"sample_size": None}, "give image_size=N"),
    ],
)
def test_a_network_that_is_no_plain_denoiser_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = makers.ddpm_folder(tmp_path / "saved")
    edit(folder / "unet" / "config.json", **changes)
    assert says in refusal(folder)


@pytest.mark.parametrize("channels", [(9, 3), (1, 3), (3, 1), (2, 5)])
def test_a_network_of_other_channels_out_than_in_is_refused(
    channels: tuple[int, int], tmp_path: Path
) -> None:
    into, out = channels
    folder = makers.ddpm_folder(tmp_path / "saved", in_channels=into, out_channels=out)
    assert f"takes {into} channels and gives {out}" in refusal(folder)


def test_the_size_of_the_samples_can_be_given(tmp_path: Path) -> None:
    folder = makers.ddpm_folder(tmp_path / "saved")
    edit(folder / "unet" / "config.json", sample_size=None)
    for size, shape in ((12, (3, 12, 12)), ((8, 16), (3, 8, 16))):
        teacher = diffusers_teacher(folder, TeacherOptions(image_size=size))
        assert teacher.denoiser.sample_shape == shape
        x = seeded((1, *shape))
        assert teacher.denoiser(x, torch.tensor(0.5)).shape == x.shape


def test_what_the_scheduler_says_can_be_overridden_field_by_field(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, clip_sample_range=1.5)
    folder = makers.ddpm_folder(tmp_path / "saved", scheduler)
    edit(folder / "scheduler" / "scheduler_config.json", warp=[1, 2])
    assert "scheduler.warp=null" in refusal(folder)
    fields = frozen_fields({"warp": None, "beta_end": 0.03, "solver_p": {"a": [1]}})
    hash(fields)
    linear = {"timesteps": 100, "beta_end": 0.03}
    teacher = diffusers_teacher(folder, TeacherOptions(scheduler=fields))
    expected = Preconditioning(BetaSchedule(**linear), "epsilon")
    assert teacher.denoiser.preconditioning == expected
    assert teacher.denoiser.clip_sample == 1.5
    teacher = diffusers_teacher(
        folder, TeacherOptions(prediction_type="v_prediction", scheduler=fields)
    )
    expected = Preconditioning(BetaSchedule(**linear), "v_prediction")
    assert teacher.denoiser.preconditioning == expected
    left_out = frozen_fields({"warp": None, "clip_sample_range": 2.0})
    teacher = diffusers_teacher(
        folder, TeacherOptions(schedule=CosineSchedule(), scheduler=left_out)
    )
    assert teacher.denoiser.preconditioning == Preconditioning(CosineSchedule(), "epsilon")
    assert teacher.denoiser.clip_sample == 2.0
    for predicted in (None, "sample"):
        with pytest.raises(InputError, match=r"scheduler\.beta_end has no effect beside schedule"):
            diffusers_teacher(folder, TeacherOptions(predicted, CosineSchedule(), scheduler=fields))
    # said in full, the process need not be one that is known; the clipping still counts
    stated = TeacherOptions("sample", CosineSchedule())
    teacher = diffusers_teacher(folder, stated)
    assert teacher.denoiser.preconditioning == Preconditioning(CosineSchedule(), "sample")
    assert teacher.denoiser.clip_sample == 1.5


def test_the_deviation_of_the_data_is_the_schedulers_unless_it_is_said(tmp_path: Path) -> None:
    stated = diffusers.EDMEulerScheduler(sigma_data=0.7)
    folder = makers.ddpm_folder(tmp_path / "edm", stated)
    for options, expected in (
        ({}, 0.7),
        ({"prediction_type": "edm", "schedule": EDMSchedule()}, 0.7),
        ({"schedule": EDMSchedule()}, 0.7),
        ({"sigma_data": 1.0}, 1.0),
        ({"prediction_type": "edm", "schedule": EDMSchedule(), "sigma_data": 1.0}, 1.0),
    ):
        teacher = diffusers_teacher(folder, TeacherOptions(**options))
        assert teacher.denoiser.preconditioning.sigma_data == expected
    other = makers.ddpm_folder(tmp_path / "ddpm")
    with pytest.raises(InputError, match=r"does not say the standard deviation.* sigma_data=0\.5"):
        diffusers_teacher(other, TeacherOptions("edm", EDMSchedule()))


def test_the_first_three_wrong_weights_are_named(tmp_path: Path) -> None:
    folder = makers.ddpm_folder(tmp_path / "saved")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    gone = sorted(n for n in tensors if n.startswith("mid_block"))[:5]
    for name in gone:
        del tensors[name]
    tensors["conv_in.weight"] = torch.zeros(8, 4, 3, 3)
    tensors["stranger"] = torch.zeros(1)
    save_file(tensors, path)
    text = refusal(folder)
    assert f"missing: {', '.join(gone[:3])} and 2 more" in text
    assert "extra: stranger" in text
    assert "of another shape: conv_in.weight" in text


HALF = {
    "fp16": {"variant": "fp16"},
    "bf16": {"variant": "bf16"},
    "fp16 in shards": {"variant": "fp16", "max_shard_size": "5KB"},
    "shards": {"max_shard_size": "5KB"},
}


@pytest.mark.parametrize("how", HALF)
def test_weights_are_read_in_every_way_they_are_saved(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network, autoencoder and text encoder, from a folder and from the Hub."""
    plain = makers.stable_diffusion_folder(tmp_path / "plain")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(plain)
    pipeline.save_pretrained(tmp_path / "saved", **HALF[how])
    assert not (tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", Hub(tmp_path / "saved", tmp_path / "cache")
    )
    expected = diffusers_teacher(plain)
    for teacher in (diffusers_teacher(tmp_path / "saved"), hub_teacher("owner/name")):
        for one, other in (
            (teacher.denoiser.network, expected.denoiser.network),
            (teacher.latents.vae, expected.latents.vae),
            (teacher.text.encoder, expected.text.encoder),
        ):
            weights = other.state_dict()
            assert all(torch.equal(v, weights[k]) for k, v in one.state_dict().items())


def test_half_precision_beside_whole_weights_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = makers.ddpm_folder(tmp_path / "saved")
    diffusers.DDPMPipeline.from_pretrained(saved).save_pretrained(saved, variant="fp16")
    (saved / "safety_checker").mkdir()  # its weights are not read, so they may be missing
    (saved / "safety_checker" / "config.json").write_text("{}")
    hub = Hub(saved, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    hub_teacher("owner/name")
    assert hub.files == [
        "model_index.json",
        "safety_checker/config.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]


def test_of_several_variants_the_most_exact_is_read(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.fp16.safetensors", "model.ema.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "model.bf16-00001-of-00002.safetensors").touch()
    (tmp_path / "model_index.json").touch()
    assert weight_variants(tmp_path, "model") == [None, "fp16", "bf16", "ema"]


def test_a_sample_size_is_whole(tmp_path: Path) -> None:
    folder = makers.ddpm_folder(tmp_path / "saved")
    edit(folder / "unet" / "config.json", sample_size=8.0)
    assert diffusers_teacher(folder).denoiser.sample_shape == (3, 8, 8)
    for wrong in (8.5, True, [8, 8.5]):
        edit(folder / "unet" / "config.json", sample_size=wrong)
        assert "sample_size of this UNet2DModel must be a whole number" in refusal(folder)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = makers.ddpm_folder(tmp_path / "saved")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    assert "pickled weights (diffusion_pytorch_model.bin)" in refusal(folder)
    path.with_suffix(".bin").unlink()
    assert "has no weights" in refusal(folder)


def test_a_text_network_without_its_encoder_is_refused(tmp_path: Path) -> None:
    folder = makers.stable_diffusion_folder(tmp_path / "saved")
    text = refusal(folder / "unet")
    assert "no text encoder" in text
    edit(folder / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])
    assert "two text encoders" in refusal(folder)


def test_an_unknown_text_encoder_is_refused(tmp_path: Path) -> None:
    folder = makers.stable_diffusion_folder(tmp_path / "saved")
    edit(folder / "text_encoder" / "config.json", architectures=["BertModel"])
    assert "BertModel, which is not supported" in refusal(folder)


def test_a_null_class_must_be_the_last(tmp_path: Path) -> None:
    folder = makers.ddpm_folder(tmp_path / "saved", num_class_embeds=5)
    assert diffusers_teacher(folder).num_classes == 5
    teacher = diffusers_teacher(folder, TeacherOptions(null_class=4))
    assert (teacher.num_classes, teacher.null_class) == (4, 4)
    assert "last of the network's 5 class embeddings, 4, not 2" in refusal(folder, null_class=2)


def test_every_class_that_loads_is_one_that_can_be_lifted() -> None:
    assert set(NETWORKS) <= set(BACKBONES)
