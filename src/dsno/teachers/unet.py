"""A diffusers U-Net as a teacher: built fresh to be trained here, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from dsno.backbones.unet import call_unet
from dsno.denoisers import Denoiser, Preconditioning
from dsno.errors import InputError
from dsno.files import filling, read_json, write_json

DESCRIPTION = "denoiser.json"


def build_unet(
    sample_shape: tuple[int, ...],
    *,
    channels: tuple[int, ...],
    layers_per_block: int = 1,
    attention: tuple[bool, ...] = (),
    middle_attention: bool = True,
    norm_num_groups: int = 8,
    time_scale_shift: bool = True,
    dropout: float = 0.0,
    num_classes: int | None = None,
) -> UNet2DModel:
    """A `UNet2DModel` with one level per entry of `channels`, halving the size at each.

    Args:
        sample_shape: (C, H, W).
        channels: width of each level.
        layers_per_block: residual blocks per level.
        attention: whether each level has self-attention; none if empty.
        middle_attention: whether the middle block has.
        norm_num_groups: groups of every GroupNorm.
        time_scale_shift: time enters as scale and shift rather than as a sum.
        dropout: in the residual blocks.
        num_classes: class labels, or None.

    Raises:
        InputError: for a shape that is not an image, or sizes that do not divide.
    """
    if len(sample_shape) != 3:
        raise InputError(
            f"A U-Net teacher needs images (C, H, W), not samples of shape {sample_shape}."
        )
    levels = len(channels)
    if levels == 0:
        raise InputError("`teacher.network.channels` needs at least one level.")
    attends = attention or (False,) * levels
    if len(attends) != levels:
        raise InputError(
            f"`teacher.network.attention` has {len(attends)} entries for {levels} levels of "
            "channels."
        )
    if any(size % 2 ** (levels - 1) for size in sample_shape[1:]):
        raise InputError(
            f"Images of {sample_shape[1]}x{sample_shape[2]} cannot be halved {levels - 1} times; "
            "use fewer levels in `teacher.network.channels`."
        )
    if any(c % norm_num_groups for c in channels):
        raise InputError(
            f"Every width in `teacher.network.channels` must be a multiple of norm_num_groups "
            f"= {norm_num_groups}."
        )
    down = tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends)
    up = tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends))
    return UNet2DModel(
        sample_size=(sample_shape[1], sample_shape[2]),
        in_channels=sample_shape[0],
        out_channels=sample_shape[0],
        block_out_channels=tuple(channels),
        layers_per_block=layers_per_block,
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=norm_num_groups,
        attn_norm_num_groups=norm_num_groups,
        attention_head_dim=None,
        add_attention=middle_attention,
        resnet_time_scale_shift="scale_shift" if time_scale_shift else "default",
        dropout=dropout,
        freq_shift=1,
        flip_sin_to_cos=False,
        num_class_embeds=num_classes,
    )


def unet_denoiser(network: UNet2DModel, preconditioning: Preconditioning) -> Denoiser:
    """Wrap a U-Net as a denoiser."""
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return Denoiser(
        network,
        preconditioning.schedule,
        prediction_type=preconditioning.prediction_type,
        sample_shape=(network.config.in_channels, height, width),
        sigma_data=preconditioning.sigma_data,
        time_input=preconditioning.time_input,
        call=call_unet,
    )


def save_teacher(
    denoiser: Denoiser, folder: Path, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write diffusers' config.json and safetensors, and `denoiser.json` beside them, atomically."""
    with filling(folder) as temporary:
        denoiser.network.save_pretrained(temporary)  # type: ignore[operator]
        write_json(
            temporary / DESCRIPTION, {**denoiser.preconditioning.to_config(), **(extra or {})}
        )


def load_teacher(folder: Path) -> Denoiser:
    """Load what `save_teacher` wrote.

    Raises:
        InputError: if the folder is not a teacher, or a file of it is damaged.
    """
    remedy = "run `dsno teacher` to train one"
    description = read_json(folder / DESCRIPTION, "teacher description", remedy)
    try:
        preconditioning = Preconditioning.from_config(
            {k: description[k] for k in ("schedule", "prediction_type", "sigma_data", "time_input")}
        )
        network = UNet2DModel.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # the other way needs accelerate
        )
    except (KeyError, TypeError, OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"The teacher in {folder} cannot be loaded ({first}); {remedy}.") from None
    network.requires_grad_(False)
    return unet_denoiser(network.eval(), preconditioning)
