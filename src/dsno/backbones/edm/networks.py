"""`SongUNet` (DDPM++ and NCSN++) and `DhariwalUNet` (ADM): how their blocks are put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from dsno.backbones.edm.arguments import checked_arguments
from dsno.backbones.edm.layers import (
    BlockStyle,
    ConvDown,
    FourierEmbedding,
    PositionalEmbedding,
    Resample,
    UNetBlock,
    group_norm,
)
from dsno.support.errors import InputError, one_of

EMBEDDING_TYPES = ("positional", "fourier")
ENCODER_TYPES = ("standard", "skip", "residual")
DECODER_TYPES = ("standard", "skip")


def local_name(name: str) -> str:
    """A module's name without its resolution: `16x16_block0` is `block0`."""
    return name.rpartition("_")[2]


class EDMNetwork(nn.Module):
    """What both networks have: labels, an encoder, a decoder, and skips between them.

    The names in `enc` and `dec` are a resolution and a local name: `16x16_block0`. A local name
    that begins with `aux` belongs to a second path, beside the residual blocks.
    """

    config: dict[str, Any]
    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def _class_rows(self, labels: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Label vectors (B, label_dim), zero for the null class; None without classes."""
        classes: int = self.config["label_dim"]
        if labels is None and classes:
            raise InputError(f"This model is class-conditional ({classes} classes): give labels.")
        if labels is None:
            return None
        if not classes:
            raise InputError("This model is unconditional: it takes no class labels.")
        if labels.ndim != 1 or labels.is_floating_point():
            raise InputError(
                f"Class labels must be whole numbers of shape (batch,), not {labels.dtype} of "
                f"shape {tuple(labels.shape)}; give indices, not one-hot rows."
            )
        return functional.one_hot(labels.long(), classes + 1)[:, :classes].to(dtype)

    def _encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """The encoder's outputs, one per skip; the last is the deepest."""
        outputs: list[Tensor] = []
        h = aux = x
        for name, module in self.enc.items():
            if name.endswith("aux_down"):
                aux = module(aux)
            elif name.endswith("aux_skip"):
                h = outputs[-1] = h + module(aux)
            elif name.endswith("aux_residual"):
                h = outputs[-1] = aux = (h + module(aux)) * math.sqrt(0.5)
            else:
                h = module(h, embedding) if isinstance(module, UNetBlock) else module(h)
                outputs.append(h)
        return outputs

    def _decode(self, skips: list[Tensor], embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """The decoder's last features, and the sum of the second path's images."""
        h, image, normed = skips[-1], None, skips[-1]
        for name, module in self.dec.items():
            if name.endswith("aux_up"):
                image = module(image)
            elif name.endswith("aux_norm"):
                normed = module(h)
            elif name.endswith("aux_conv"):
                added = module(functional.silu(normed))
                image = added if image is None else image + added
            else:
                if local_name(name).startswith("block"):
                    h = torch.cat([h, skips.pop()], dim=1)
                h = module(h, embedding)
        return h, image


class SongUNet(EDMNetwork):
    """DDPM++ and NCSN++.

    Args:
        img_resolution: height and width of the images the names and attention levels refer to.
        in_channels: of the input.
        out_channels: of the output.
        label_dim: classes; 0 for an unconditional network.
        augment_dim: width of augmentation labels, which are always zero here.
        model_channels: base width.
        channel_mult: multiple of the base width at each level.
        channel_mult_emb: multiple of the base width of the embedding.
        num_blocks: residual blocks per level.
        attn_resolutions: resolutions with self-attention.
        dropout: probability in the residual blocks.
        label_dropout: what it was trained with; positive if it knows the null class.
        embedding_type: of the time: `positional` (DDPM++) or `fourier` (NCSN++).
        channel_mult_noise: multiple of the base width of the time embedding: 1 or 2 (NCSN++).
        encoder_type: `standard` (DDPM++), `residual` (NCSN++) or `skip`.
        decoder_type: `standard` (both) or `skip`.
        resample_filter: taps: [1, 1] (DDPM++) or [1, 3, 3, 1] (NCSN++).

    Raises:
        InputError: for an argument of the wrong kind or range, or widths that cannot be grouped.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        config = checked_arguments(locals())
        one_of(embedding_type, EMBEDDING_TYPES, "embedding_type")
        one_of(encoder_type, ENCODER_TYPES, "encoder_type")
        one_of(decoder_type, DECODER_TYPES, "decoder_type")
        super().__init__()
        self.config = config
        width, mapped = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        style = BlockStyle(
            embedding=width,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            taps=tuple(resample_filter),
            project=True,
            adaptive=False,
            head_channels=None,
        )
        self.map_noise = (
            PositionalEmbedding(mapped, endpoint=True, sines_first=True)
            if embedding_type == "positional"
            else FourierEmbedding(mapped)
        )
        self.map_label = nn.Linear(label_dim, mapped) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, mapped, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(mapped, width)
        self.map_layer1 = nn.Linear(width, width)
        widths = [model_channels * m for m in channel_mult]
        sizes = _Levels(img_resolution, widths, num_blocks, set(attn_resolutions), style)
        self.enc, skips = _encoder(sizes, in_channels, model_channels, self._encoder_aux)
        self.dec = _decoder(sizes, skips, self._decoder_aux, attend_all=False)

    def _encoder_aux(self, level: int, width: int, before: int) -> dict[str, nn.Module]:
        """The second path behind a level's downsampling: it carries the image down."""
        taps, colours = self.config["resample_filter"], self.config["in_channels"]
        if self.config["encoder_type"] == "skip":
            return {
                "aux_down": Resample(taps, up=False),
                "aux_skip": nn.Conv2d(colours, width, 1),
            }
        if self.config["encoder_type"] == "residual":
            carried = colours if level == 1 else before
            return {"aux_residual": ConvDown(carried, width, 3, taps)}
        return {}

    def _decoder_aux(self, level: int, width: int) -> dict[str, nn.Module]:
        """The way from features to an image: at every level with skips, else at the first."""
        colours = self.config["out_channels"]
        skip = self.config["decoder_type"] == "skip"
        if level and not skip:
            return {}
        modules: dict[str, nn.Module] = {}
        if skip and level < len(self.config["channel_mult"]) - 1:
            modules["aux_up"] = Resample(self.config["resample_filter"], up=True)
        modules["aux_norm"] = group_norm(width, 1e-6)
        modules["aux_conv"] = nn.Conv2d(width, colours, 3, padding=1)
        return modules

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        c_noise: Float[Tensor, " batch"],
        class_labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out height width"]:
        """Return F.

        Raises:
            InputError: for labels missing, not wanted, or not indices.
        """
        dtype = self.map_layer0.weight.dtype
        time = self.map_noise(c_noise).to(dtype)
        rows = self._class_rows(class_labels, dtype)
        if rows is not None and self.map_label is not None:
            time = time + self.map_label(rows * math.sqrt(rows.shape[1]))
        embedding = functional.silu(self.map_layer0(time))
        embedding = functional.silu(self.map_layer1(embedding))
        image = self._decode(self._encode(x, embedding), embedding)[1]
        assert image is not None
        return image


class DhariwalUNet(EDMNetwork):
    """ADM. See `SongUNet` for the arguments.

    Raises:
        InputError: for an argument of the wrong kind or range, or widths that cannot be grouped.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
    ) -> None:
        config = checked_arguments(locals())
        super().__init__()
        self.config = config
        width = model_channels * channel_mult_emb
        style = BlockStyle(
            embedding=width,
            dropout=dropout,
            skip_scale=1.0,
            eps=1e-5,
            taps=(1, 1),
            project=False,
            adaptive=True,
            head_channels=64,
        )
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False, sines_first=False)
        self.map_augment = (
            nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        )
        self.map_layer0 = nn.Linear(model_channels, width)
        self.map_layer1 = nn.Linear(width, width)
        self.map_label = nn.Linear(label_dim, width, bias=False) if label_dim else None
        widths = [model_channels * m for m in channel_mult]
        sizes = _Levels(img_resolution, widths, num_blocks, set(attn_resolutions), style)
        self.enc, skips = _encoder(sizes, in_channels, widths[0], lambda *_: {})
        self.dec = _decoder(sizes, skips, lambda *_: {}, attend_all=True)
        self.out_norm = group_norm(widths[0], 1e-5)
        self.out_conv = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        c_noise: Float[Tensor, " batch"],
        class_labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out height width"]:
        """Return F.

        Raises:
            InputError: for labels missing, not wanted, or not indices.
        """
        dtype = self.map_layer0.weight.dtype
        time = self.map_noise(c_noise).to(dtype)
        embedding = self.map_layer1(functional.silu(self.map_layer0(time)))
        rows = self._class_rows(class_labels, dtype)
        if rows is not None and self.map_label is not None:
            embedding = embedding + self.map_label(rows)
        embedding = functional.silu(embedding)
        h, _ = self._decode(self._encode(x, embedding), embedding)
        image: Tensor = self.out_conv(functional.silu(self.out_norm(h)))
        return image


@dataclass(frozen=True)
class _Levels:
    """The sizes of a U-Net: resolution of the first level, widths of all, and their blocks."""

    resolution: int
    widths: list[int]
    num_blocks: int
    attended: set[int]
    style: BlockStyle

    def prefix(self, level: int) -> str:
        """What the names of a level's modules begin with."""
        size = self.resolution >> level
        return f"{size}x{size}_"

    def attends(self, level: int) -> bool:
        """Whether a level has self-attention."""
        return self.resolution >> level in self.attended


def _encoder(
    sizes: _Levels,
    in_channels: int,
    first: int,
    aux: Callable[[int, int, int], Mapping[str, nn.Module]],
) -> tuple[nn.ModuleDict, list[int]]:
    """The encoder and the widths of its skips; `aux(level, width, width two levels up)`.

    `first` is the width behind the first convolution.
    """
    modules: dict[str, nn.Module] = {}
    skips: list[int] = []
    width = before = first
    for level, wanted in enumerate(sizes.widths):
        name = sizes.prefix(level)
        if level == 0:
            modules[name + "conv"] = nn.Conv2d(in_channels, first, 3, padding=1)
        else:
            modules[name + "down"] = UNetBlock(width, width, sizes.style, resize="down")
            modules |= {name + k: v for k, v in aux(level, width, before).items()}
            before = width
        skips.append(width)
        for i in range(sizes.num_blocks):
            modules[f"{name}block{i}"] = UNetBlock(
                width, wanted, sizes.style, attention=sizes.attends(level)
            )
            width = wanted
            skips.append(width)
    return nn.ModuleDict(modules), skips


def _decoder(
    sizes: _Levels,
    skips: list[int],
    aux: Callable[[int, int], Mapping[str, nn.Module]],
    *,
    attend_all: bool,
) -> nn.ModuleDict:
    """The decoder; `attend_all` for attention in all blocks of a level, not in the last alone."""
    modules: dict[str, nn.Module] = {}
    left, width = list(skips), skips[-1]
    last = len(sizes.widths) - 1
    for level in range(last, -1, -1):
        name, wanted = sizes.prefix(level), sizes.widths[level]
        if level == last:
            modules[name + "in0"] = UNetBlock(width, width, sizes.style, attention=True)
            modules[name + "in1"] = UNetBlock(width, width, sizes.style)
        else:
            modules[name + "up"] = UNetBlock(width, width, sizes.style, resize="up")
        for i in range(sizes.num_blocks + 1):
            attention = sizes.attends(level) and (attend_all or i == sizes.num_blocks)
            modules[f"{name}block{i}"] = UNetBlock(
                width + left.pop(), wanted, sizes.style, attention=attention
            )
            width = wanted
        modules |= {name + k: v for k, v in aux(level, width).items()}
    return nn.ModuleDict(modules)
