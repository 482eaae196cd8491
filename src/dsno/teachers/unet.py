"""A fresh diffusers U-Net, to be trained here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsno.support.errors import InputError

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def build_unet(
    sample_shape: tuple[int, ...],
    *,
    channels: tuple[int, ...],
    layers_per_block: int = 1,
    attention: tuple[bool, ...] = (),
    middle_attention: bool = True,
    head_channels: int | None = None,
    norm_num_groups: int = 8,
    norm_eps: float = 1e-5,
    time_scale_shift: bool = True,
    resample: str = "conv",
    dropout: float = 0.0,
    num_classes: int | None = None,
    out_channels: int | None = None,
) -> UNet2DModel:
    """A `UNet2DModel` with one level per entry of `channels`, halving the size at each.

    Args:
        sample_shape: (C, H, W).
        channels: width of each level.
        layers_per_block: residual blocks per level.
        attention: whether each level has self-attention; none if empty.
        middle_attention: whether the middle block has.
        head_channels: channels per attention head; one head if None.
        norm_num_groups: groups of every GroupNorm.
        norm_eps: of every GroupNorm.
        time_scale_shift: time enters as scale and shift rather than as a sum.
        resample: `conv` to change sizes by a convolution, `resnet` by a residual block (BigGAN's).
        dropout: in the residual blocks.
        num_classes: class labels, or None.
        out_channels: C if None; twice that for two predictions.

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
    # DownBlock2D and UpBlock2D know no other way than convolution
    plain = ("Resnet", "sample") if resample == "resnet" else ("", "")
    down = tuple("AttnDownBlock2D" if a else "{}Down{}Block2D".format(*plain) for a in attends)
    up = tuple("AttnUpBlock2D" if a else "{}Up{}Block2D".format(*plain) for a in reversed(attends))
    from diffusers import UNet2DModel  # seconds

    return UNet2DModel(
        sample_size=(sample_shape[1], sample_shape[2]),
        in_channels=sample_shape[0],
        out_channels=out_channels or sample_shape[0],
        block_out_channels=tuple(channels),
        layers_per_block=layers_per_block,
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=norm_num_groups,
        attn_norm_num_groups=norm_num_groups,
        norm_eps=norm_eps,
        attention_head_dim=head_channels,
        downsample_type=resample,
        upsample_type=resample,
        add_attention=middle_attention,
        resnet_time_scale_shift="scale_shift" if time_scale_shift else "default",
        dropout=dropout,
        freq_shift=1,
        flip_sin_to_cos=False,
        num_class_embeds=num_classes,
    )
