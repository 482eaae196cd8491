"""Teachers from diffusers: a pipeline or a network, in a local folder or on the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from dsno.teachers.schedulers import SchedulerSettings, scheduler_settings
from dsno.teachers.store import Teacher, denoiser_of

# What is worth downloading of a pipeline's repository: no second copies.
ALLOW = [
    "*.json",
    "diffusion_pytorch_model*.safetensors",
    *(f"{part}/*" for part in ("unet", "transformer", "vae", "vqvae", "scheduler")),
    *(f"{part}/*" for part in ("text_encoder", "tokenizer", "bert")),
]
IGNORE = ["*.non_ema.*", "*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.h5", "*.pt"]
NETWORK_PARTS = ("unet", "transformer")
AUTOENCODER_PARTS = ("vae", "vqvae")


def hub_teacher(
    name: str, settings: SchedulerSettings | None = None, null_class: int | None = None
) -> Teacher:
    """A teacher from the Hub, by `owner/name`; see `diffusers_teacher`."""
    folder = download(name, allow=ALLOW, ignore=[*IGNORE, *HALF_PRECISION])
    if lacks_weights(folder):
        folder = download(name, allow=ALLOW, ignore=IGNORE)
    return diffusers_teacher(folder, settings, null_class, origin=name)


def diffusers_teacher(
    folder: Path,
    settings: SchedulerSettings | None = None,
    null_class: int | None = None,
    *,
    origin: str = "",
) -> Teacher:
    """A teacher from a pipeline's or a network's folder.

    Args:
        folder: with model_index.json, or with a network's config.json and safetensors.
        settings: what the network predicts on which schedule; read from the scheduler beside the
            network if None.
        null_class: the label meaning "no class", which must be the last one; known for a DiT.
        origin: what to record as the source; the folder if empty.

    Raises:
        InputError: for parts that are not supported, do not fit or are missing.
    """
    try:
        return _read(folder, _index(folder), settings, null_class, origin or str(folder))
    except InputError:
        raise
    except Exception as error:  # whatever a lying configuration makes a library raise
        raise InputError(
            f"The model in {folder} cannot be read ({first_line(error)}); {REMEDY}."
        ) from None


def _read(
    folder: Path,
    index: Mapping[str, Any],
    settings: SchedulerSettings | None,
    null_class: int | None,
    origin: str,
) -> Teacher:
    part = next((p for p in NETWORK_PARTS if p in index), "unet")
    place = _place(folder, part)
    _require_plain(read_json(place / "config.json", "configuration of the network", REMEDY))
    network = load_component(place, NETWORKS, "network")
    shape = _sample_shape(network)
    settings = settings or _saved_settings(folder)
    latents = _latents(folder, index)
    text = _text(folder, index, network)
    num_classes, null = _classes(network, null_class)
    denoiser = denoiser_of(
        network,
        settings.preconditioning,
        shape,
        clip_sample=settings.clip_sample,
        dynamic_threshold=settings.dynamic_threshold,
    )
    return Teacher(denoiser, num_classes, null, latents, text, origin)


def _index(folder: Path) -> Mapping[str, Any]:
    if not (folder / "model_index.json").exists():
        return {}
    return read_json(folder / "model_index.json", "model index", REMEDY)


def _place(folder: Path, part: str) -> Path:
    """A component's folder; the first pipelines kept everything at the top."""
    return folder / part if (folder / part).is_dir() else folder


def _saved_settings(folder: Path) -> SchedulerSettings:
    for place in (folder / "scheduler", folder, folder.parent / "scheduler"):
        path = place / "scheduler_config.json"
        if path.exists():
            return scheduler_settings(read_json(path, "scheduler", REMEDY))
    raise InputError(
        f"{folder} has no scheduler_config.json, so what the network predicts is not known; say it "
        "with prediction_type=... and schedule.name=..."
    )


def _require_plain(config: Mapping[str, Any]) -> None:
    """Refuse networks with inputs that a denoiser D(x, t, condition) does not have."""
    name = config.get("_class_name")
    if config.get("time_embedding_type") in ("fourier", "learned"):
        raise InputError(
            f"This {name} has a {config['time_embedding_type']} time embedding, which is not "
            "supported; it needs a positional one."
        )
    for key in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type"):
        if config.get(key) is not None:
            raise InputError(
                f"This {name} has {key} = {config[key]!r}, an input that is not supported."
            )
    if name == "UNet2DConditionModel" and config.get("num_class_embeds") is not None:
        raise InputError(f"This {name} takes text and class labels, which is not supported.")


def _sample_shape(network: nn.Module) -> tuple[int, int, int]:
    config: Any = network.config
    name, channels, given = type(network).__name__, config["in_channels"], config["out_channels"]
    if channels not in (given, given // 2):
        raise InputError(
            f"This {name} takes {channels} channels and gives {given}, so it is no plain denoiser "
            "(inpainting and upscaling models are not supported)."
        )
    size = config["sample_size"]
    if size is None:
        raise InputError(
            f"This {name} does not say its sample_size; write it into its config.json."
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
    if total is None or null_class != total - 1:
        raise InputError(
            f"The null class must be the last of the network's {total or 0} class embeddings, not "
            f"{null_class}."
        )
    return total - 1, null_class


def _latents(folder: Path, index: Mapping[str, Any]) -> Latents | None:
    part = next((p for p in AUTOENCODER_PARTS if p in index), None)
    if part is None:
        return None
    return Latents(load_component(folder / part, AUTOENCODERS, "autoencoder"))


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


def described(prediction_type: str, schedule: Any, sigma_data: float) -> SchedulerSettings:
    """The settings the user states, for a network without a scheduler."""
    return SchedulerSettings(Preconditioning(schedule, prediction_type, sigma_data))
