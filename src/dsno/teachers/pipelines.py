"""Teachers from diffusers: a pipeline or a network, in a local folder or on the Hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dsno.backbones.autoencoder import Latents
from dsno.backbones.safe_loading import (
    AUTOENCODERS,
    NETWORKS,
    REMEDY,
    check_sample_shape,
    first_line,
    lacks_weights,
)
from dsno.backbones.text_encoder import TextEncoder
from dsno.diffusion.denoisers import Preconditioning
from dsno.support.errors import InputError
from dsno.support.files import read_json
from dsno.support.hub import HALF_PRECISION, download
from dsno.support.scalars import whole
from dsno.teachers.components import load_component, load_text_encoder
from dsno.teachers.options import TeacherOptions
from dsno.teachers.schedulers import (
    CLIPPING,
    STATE_IT,
    SchedulerSettings,
    scheduler_clipping,
    scheduler_settings,
    scheduler_sigma_data,
)
from dsno.teachers.store import Teacher, denoiser_of

# What is worth downloading of a pipeline's repository: no second copies.
COMPONENTS = ("unet", "transformer", "vae", "vqvae", "text_encoder", "bert")
"""Folders of a pipeline that have weights which are read."""
ALLOW = [
    "*.json",
    "diffusion_pytorch_model*.safetensors",
    *(f"{name}/*" for name in (*COMPONENTS, "scheduler", "tokenizer")),
]
IGNORE = ["*.non_ema.*", "*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.h5", "*.pt"]
NETWORK_FOLDERS = ("unet", "transformer")
AUTOENCODER_FOLDERS = ("vae", "vqvae")
AS_IT_SAYS = TeacherOptions()
ADAPTER = "write an adapter that calls it (see docs/teachers.md)"


def hub_teacher(name: str, options: TeacherOptions = AS_IT_SAYS) -> Teacher:
    """A teacher from the Hub, by `owner/name`; see `diffusers_teacher`."""
    folder = download(name, allow=ALLOW, ignore=[*IGNORE, *HALF_PRECISION])
    if lacks_weights(folder, COMPONENTS):
        folder = download(name, allow=ALLOW, ignore=IGNORE)
    return diffusers_teacher(folder, options, origin=name)


def diffusers_teacher(
    folder: Path, options: TeacherOptions = AS_IT_SAYS, *, origin: str = ""
) -> Teacher:
    """A teacher from a pipeline's or a network's folder.

    Args:
        folder: with model_index.json, or with a network's config.json and safetensors.
        options: in place of what the folder says: of the scheduler, which lies beside the network,
            the prediction type, the schedule or single fields; the size of the samples; and
            `null_class`, which must be the last label and is known for a DiT. `clip_sample` is left
            to the caller.
        origin: what to record as the source; the folder if empty.

    Raises:
        InputError: for components that are not supported, do not fit or are missing.
    """
    try:
        return _read(folder, _index(folder), options, origin or str(folder))
    except InputError:
        raise
    except Exception as error:  # whatever a lying configuration makes a library raise
        raise InputError(
            f"The model in {folder} cannot be read ({first_line(error)}); {REMEDY}."
        ) from None


def _read(folder: Path, index: Mapping[str, Any], options: TeacherOptions, origin: str) -> Teacher:
    name = next((n for n in NETWORK_FOLDERS if n in index), "unet")
    at = _component_folder(folder, name)
    _require_plain(read_json(at / "config.json", "configuration of the network", REMEDY))
    network = load_component(at, NETWORKS, "network")
    shape = _sample_shape(network, options.image_size)
    settings = _settings(folder, options)
    latents = _latents(folder, index)
    text = _text(folder, index, network)
    num_classes, null = _classes(network, options.null_class)
    denoiser = denoiser_of(
        network,
        settings.preconditioning,
        shape,
        # Stable Diffusion's pipelines never clip latents, whatever their scheduler's file says.
        clip_sample=None if text is not None and latents is not None else settings.clip_sample,
        dynamic_threshold=settings.dynamic_threshold,
    )
    return Teacher(denoiser, num_classes, null, latents, text, origin)


def _index(folder: Path) -> Mapping[str, Any]:
    if not (folder / "model_index.json").exists():
        return {}
    return read_json(folder / "model_index.json", "model index", REMEDY)


def _component_folder(folder: Path, name: str) -> Path:
    """A component's folder; the first pipelines kept everything at the top."""
    return folder / name if (folder / name).is_dir() else folder


def _settings(folder: Path, options: TeacherOptions) -> SchedulerSettings:
    """What the user says of the process, and for the rest what the scheduler says."""
    config = _scheduler_config(folder)
    predicted, schedule = options.prediction_type, options.schedule
    if config is None and (predicted is None or schedule is None or options.scheduler):
        raise InputError(
            f"{folder} has no scheduler_config.json, so what the network predicts is not known; "
            f"{STATE_IT}."
        )
    config = {**(config or {}), **dict(options.scheduler)}
    if schedule is not None:
        _refuse_unused(options.scheduler, predicted)
    if predicted is not None and schedule is not None:
        sigma_data = options.sigma_data
        if sigma_data is None:
            sigma_data = scheduler_sigma_data(config) if predicted == "edm" else 1.0
        if sigma_data is None:
            raise InputError(
                f"{folder} does not say the standard deviation of the data, which EDM's prediction "
                "needs; give sigma_data=0.5 or what the network was trained with."
            )
        stated = Preconditioning(schedule, predicted, sigma_data)
        return SchedulerSettings(stated, *scheduler_clipping(config))
    settings = scheduler_settings(config)
    changes: dict[str, Any] = {}
    if predicted is not None:
        changes = {"prediction_type": predicted}
    if schedule is not None:
        changes = {"schedule": schedule, "time_input": ""}
    if options.sigma_data is not None:
        changes["sigma_data"] = options.sigma_data
    return dataclasses.replace(
        settings, preconditioning=dataclasses.replace(settings.preconditioning, **changes)
    )


def _refuse_unused(fields: Iterable[tuple[str, Any]], predicted: str | None) -> None:
    """Refuse overridden fields of a scheduler that count for nothing beside a stated schedule.

    Raises:
        InputError: naming the first.
    """
    used = CLIPPING if predicted is not None else (*CLIPPING, "prediction_type")
    for key, value in fields:
        if value is not None and key not in used:
            raise InputError(
                f"scheduler.{key} has no effect beside schedule.name; give the schedule's own "
                f"field (schedule.{key}, if it has that), or leave schedule.name out."
            )


def scheduler_file(folder: Path) -> Path | None:
    """The scheduler's configuration in a pipeline's folder, or beside a network's."""
    places = (folder / "scheduler", folder, folder.parent / "scheduler")
    found = (place / "scheduler_config.json" for place in places)
    return next((path for path in found if path.exists()), None)


def _scheduler_config(folder: Path) -> Mapping[str, Any] | None:
    path = scheduler_file(folder)
    return None if path is None else read_json(path, "scheduler", REMEDY)


def _require_plain(config: Mapping[str, Any]) -> None:
    """Refuse networks with inputs that a denoiser D(x, t, condition) does not have."""
    name = config.get("_class_name")
    if config.get("time_embedding_type") in ("fourier", "learned"):
        raise InputError(
            f"This {name} has a {config['time_embedding_type']} time embedding, and only "
            f"positional ones are supported; {ADAPTER}."
        )
    for key in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type"):
        if config.get(key) is not None:
            raise InputError(
                f"This {name} has {key} = {config[key]!r}, an input that is not supported; "
                f"{ADAPTER}."
            )
    if name == "UNet2DConditionModel" and config.get("num_class_embeds") is not None:
        raise InputError(
            f"This {name} takes text and class labels, which is not supported; {ADAPTER}."
        )


def _sample_shape(network: nn.Module, asked: int | tuple[int, int] | None) -> tuple[int, int, int]:
    config: Any = network.config
    name, channels, given = type(network).__name__, config["in_channels"], config["out_channels"]
    if given not in (channels, 2 * channels):
        raise InputError(
            f"This {name} takes {channels} channels and gives {given}, so it is no plain denoiser "
            f"(inpainting and upscaling models are not supported); {ADAPTER}."
        )
    size = config["sample_size"] if asked is None else asked
    if size is None:
        raise InputError(
            f"This {name} does not say how large its samples are; give image_size=N, in its own "
            "pixels or latents."
        )
    sides = size if isinstance(size, Sequence) else (size, size)
    height, width = (whole(side, f"sample_size of this {name}") for side in sides)
    check_sample_shape((channels, height, width), f"This {name}")
    return channels, height, width


def _classes(network: nn.Module, null_class: int | None) -> tuple[int | None, int | None]:
    """How many classes labels may name, and the null class."""
    config: Any = network.config
    if type(network).__name__ == "DiTTransformer2DModel":
        count: int = config["num_embeds_ada_norm"]
        return count, count  # its embedding has one more row
    total: int | None = config.get("num_class_embeds")
    if null_class is None:
        return total, None
    if total is None:
        raise InputError("This network takes no class labels; leave null_class out.")
    if null_class != total - 1:
        raise InputError(
            f"The null class must be the last of the network's {total} class embeddings, "
            f"{total - 1}, not {null_class}; leave it out if none of them means 'no class'."
        )
    return total - 1, null_class


def _latents(folder: Path, index: Mapping[str, Any]) -> Latents | None:
    name = next((n for n in AUTOENCODER_FOLDERS if n in index), None)
    if name is None:
        return None
    return Latents(load_component(folder / name, AUTOENCODERS, "autoencoder"))


def _text(folder: Path, index: Mapping[str, Any], network: nn.Module) -> TextEncoder | None:
    if type(network).__name__ != "UNet2DConditionModel":
        return None
    if "text_encoder_2" in index:
        raise InputError(
            "Pipelines with two text encoders are not supported; give one with a single "
            "`text_encoder`."
        )
    if "text_encoder" not in index:
        raise InputError(
            f"{folder} has a text-conditional network but no text encoder; give the whole "
            "pipeline's folder."
        )
    return load_text_encoder(folder / "tokenizer", folder / "text_encoder")
