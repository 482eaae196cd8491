"""The networks of EDM: `SongUNet` (DDPM++ and NCSN++) and `DhariwalUNet` (ADM).

Their parameters and buffers have the names and shapes of the published checkpoints of Karras et
al., arXiv 2206.00364 (Table 7 and appendix F.2), so that those load strictly. The architectures:
DDPM++ and NCSN++ from Song et al., arXiv 2011.13456; ADM from Dhariwal & Nichol, arXiv 2105.05233.

Three things differ from the published code. Class labels are indices, not one-hot rows; the index
`label_dim` is the null class, whose label vector is zero. Labels are never dropped here, whatever
`label_dropout` says, since training chooses the null class by itself. Augmentation labels are
always zero, as in sampling; their weights are kept so that checkpoints load.

Shapes: images (B, C, H, W), embeddings (B, E), labels int64 (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from dsno.backbones.sites import Level
from dsno.diffusion.conditions import CLASS_LABELS
from dsno.support.errors import InputError, one_of

EMBEDDING_TYPES = ("positional", "fourier")
ENCODER_TYPES = ("standard", "skip", "residual")
DECODER_TYPES = ("standard", "skip")

# Sizes come from files: these bound what building a network from one may cost.
MOST_BLOCKS = 64
MOST_PIXELS = 2**16


@dataclass(frozen=True)
class _Style:
    """What all residual blocks of one network share.

    Attributes:
        embedding: width of the embedding.
        dropout: before the second convolution.
        skip_scale: factor of every sum.
        eps: of the group normalisations.
        taps: of the resampling filter.
        project: whether the skip of a resampling block is always projected.
        adaptive: whether the embedding enters as scale and shift rather than as a sum.
        head_channels: channels per attention head; None for one head.
    """

    embedding: int
    dropout: float
    skip_scale: float
    eps: float
    taps: tuple[float, ...]
    project: bool
    adaptive: bool
    head_channels: int | None

    def heads(self, channels: int) -> int:
        """Attention heads at a width; none below one head's channels, as in ADM."""
        return 1 if self.head_channels is None else channels // self.head_channels


def _resample(x: Tensor, kernel: Tensor, *, up: bool, padding: int) -> Tensor:
    """Filter every channel with the same kernel (1, 1, k, k) and double or halve the size."""
    each = kernel.expand(x.shape[1], 1, -1, -1)
    if up:  # three of four pixels put in are zero
        return functional.conv_transpose2d(
            x, 4 * each, stride=2, padding=padding, groups=x.shape[1]
        )
    return functional.conv2d(x, each, stride=2, padding=padding, groups=x.shape[1])


def _kernel(taps: Sequence[float]) -> Tensor:
    row = torch.tensor(taps, dtype=torch.float32)
    row = row / row.sum()
    return (row[:, None] * row)[None, None]


class Resample(nn.Module):
    """Double or halve the size with a filter."""

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float], *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.padding = (len(taps) - 1) // 2
        self.register_buffer("resample_filter", _kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Return x at twice or half its size."""
        return _resample(x, self.resample_filter, up=self.up, padding=self.padding)


class ResampleConv(nn.Conv2d):
    """Double or halve the size with a filter, then convolve."""

    resample_filter: Tensor

    def __init__(
        self, channels: int, out_channels: int, size: int, taps: Sequence[float], *, up: bool
    ) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2)
        self.up = up
        self.margin = (len(taps) - 1) // 2
        self.register_buffer("resample_filter", _kernel(taps))

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` at its new size."""
        return super().forward(
            _resample(input, self.resample_filter, up=self.up, padding=self.margin)
        )


class ConvDown(nn.Conv2d):
    """Convolve, then halve the size, padding once for both."""

    resample_filter: Tensor

    def __init__(self, channels: int, out_channels: int, size: int, taps: Sequence[float]) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2 + (len(taps) - 1) // 2)
        self.register_buffer("resample_filter", _kernel(taps))

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` at half its size."""
        bias = None if self.bias is None else self.bias[:, None, None]
        wide = functional.conv2d(input, self.weight, padding=self.padding)
        half = _resample(wide, self.resample_filter, up=False, padding=0)
        return half if bias is None else half + bias


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    """Up to 32 groups of at least 4 channels."""
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        raise InputError(
            f"A width of {channels} channels cannot be normalised in {groups} groups; "
            "use multiples of 4 up to 128 channels, and of 32 above."
        )
    return nn.GroupNorm(groups, channels, eps=eps)


class UNetBlock(nn.Module):
    """A residual block, with self-attention behind it where there is some.

    Args:
        channels: at the input.
        out_channels: at the output.
        style: what the network's blocks share.
        resize: `up`, `down`, or empty to keep the resolution.
        attention: whether there is self-attention.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        style: _Style,
        *,
        resize: str = "",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.resize = resize
        self.style = style
        self.heads = style.heads(out_channels) if attention else 0
        if self.heads and out_channels % self.heads:
            raise InputError(
                f"A width of {out_channels} channels cannot be split among {self.heads} attention "
                "heads."
            )
        self.norm0 = _norm(channels, style.eps)
        self.conv0 = self._conv(channels, out_channels, 3)
        self.affine = nn.Linear(style.embedding, out_channels * (2 if style.adaptive else 1))
        self.norm1 = _norm(out_channels, style.eps)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module | None = None
        if channels != out_channels or (resize and style.project):
            self.skip = self._conv(channels, out_channels, 1)
        elif resize:
            self.skip = Resample(style.taps, up=resize == "up")
        if self.heads:
            self.norm2 = _norm(out_channels, style.eps)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)

    def _conv(self, channels: int, out_channels: int, size: int) -> nn.Module:
        if not self.resize:
            return nn.Conv2d(channels, out_channels, size, padding=size // 2)
        return ResampleConv(channels, out_channels, size, self.style.taps, up=self.resize == "up")

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the block's output for x (B, C, H, W) and the embedding (B, E)."""
        style = self.style
        h: Tensor = self.conv0(functional.silu(self.norm0(x)))
        told = self.affine(embedding)[:, :, None, None]
        if style.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + told)
        h = functional.dropout(functional.silu(h), style.dropout, self.training)
        h = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * style.skip_scale
        return (h + self._attend(h)) * style.skip_scale if self.heads else h

    def _attend(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # a head's channels hold the query, key and value of each feature side by side
        packed = self.qkv(self.norm2(x)).reshape(
            batch, self.heads, channels // self.heads, 3, height * width
        )
        query, key, value = packed.transpose(2, 4).unbind(3)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(mixed.transpose(2, 3).reshape(x.shape))
        return result


class PositionalEmbedding(nn.Module):
    """Sines and cosines of a number at geometrically falling frequencies.

    Args:
        channels: of the embedding, half sines, half cosines.
        endpoint: whether the last frequency is 1e-4 itself rather than the one before it.
        sines_first: the order of the two halves.
    """

    def __init__(self, channels: int, *, endpoint: bool, sines_first: bool) -> None:
        super().__init__()
        self.count = channels // 2
        self.intervals = self.count - 1 if endpoint else self.count
        self.sines_first = sines_first

    def forward(self, number: Tensor) -> Tensor:
        """Return (B, channels) for (B,)."""
        step = torch.arange(self.count, dtype=number.dtype, device=number.device)
        phase = number[:, None] * torch.pow(1e-4, step / self.intervals)
        halves = (phase.sin(), phase.cos())
        return torch.cat(halves if self.sines_first else halves[::-1], dim=1)


class FourierEmbedding(nn.Module):
    """Sines and cosines of a number at random frequencies, which belong to the weights."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, number: Tensor) -> Tensor:
        """Return (B, channels) for (B,): sines, then cosines."""
        phase = number[:, None] * (2 * math.pi * self.freqs).to(number.dtype)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class _EDMNetwork(nn.Module):
    """What both networks have: labels, an encoder, a decoder, and skips between them.

    The names in `enc` and `dec` are a resolution and a part: `16x16_block0`. A part that begins
    with `aux` belongs to a second path, beside the residual blocks.
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
        for name, part in self.enc.items():
            if name.endswith("aux_down"):
                aux = part(aux)
            elif name.endswith("aux_skip"):
                h = outputs[-1] = h + part(aux)
            elif name.endswith("aux_residual"):
                h = outputs[-1] = aux = (h + part(aux)) * math.sqrt(0.5)
            else:
                h = part(h, embedding) if isinstance(part, UNetBlock) else part(h)
                outputs.append(h)
        return outputs

    def _decode(self, skips: list[Tensor], embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """The decoder's last features, and the sum of the second path's images."""
        h, image, normed = skips[-1], None, skips[-1]
        for name, part in self.dec.items():
            if name.endswith("aux_up"):
                image = part(image)
            elif name.endswith("aux_norm"):
                normed = part(h)
            elif name.endswith("aux_conv"):
                added = part(functional.silu(normed))
                image = added if image is None else image + added
            else:
                if _part(name).startswith("block"):
                    h = torch.cat([h, skips.pop()], dim=1)
                h = part(h, embedding)
        return h, image


class SongUNet(_EDMNetwork):
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
        config = _config(locals())
        one_of(embedding_type, EMBEDDING_TYPES, "embedding_type")
        one_of(encoder_type, ENCODER_TYPES, "encoder_type")
        one_of(decoder_type, DECODER_TYPES, "decoder_type")
        super().__init__()
        self.config = config
        width, told = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        style = _Style(
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
            PositionalEmbedding(told, endpoint=True, sines_first=True)
            if embedding_type == "positional"
            else FourierEmbedding(told)
        )
        self.map_label = nn.Linear(label_dim, told) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, told, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(told, width)
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
        parts: dict[str, nn.Module] = {}
        if skip and level < len(self.config["channel_mult"]) - 1:
            parts["aux_up"] = Resample(self.config["resample_filter"], up=True)
        parts["aux_norm"] = _norm(width, 1e-6)
        parts["aux_conv"] = nn.Conv2d(width, colours, 3, padding=1)
        return parts

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
        told = self.map_noise(c_noise).to(dtype)
        rows = self._class_rows(class_labels, dtype)
        if rows is not None and self.map_label is not None:
            told = told + self.map_label(rows * math.sqrt(rows.shape[1]))
        embedding = functional.silu(self.map_layer0(told))
        embedding = functional.silu(self.map_layer1(embedding))
        image = self._decode(self._encode(x, embedding), embedding)[1]
        assert image is not None
        return image


class DhariwalUNet(_EDMNetwork):
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
        config = _config(locals())
        super().__init__()
        self.config = config
        width = model_channels * channel_mult_emb
        style = _Style(
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
        self.out_norm = _norm(widths[0], 1e-5)
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
        told = self.map_noise(c_noise).to(dtype)
        embedding = self.map_layer1(functional.silu(self.map_layer0(told)))
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
    style: _Style

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
    parts: dict[str, nn.Module] = {}
    skips: list[int] = []
    width = before = first
    for level, wanted in enumerate(sizes.widths):
        name = sizes.prefix(level)
        if level == 0:
            parts[name + "conv"] = nn.Conv2d(in_channels, first, 3, padding=1)
        else:
            parts[name + "down"] = UNetBlock(width, width, sizes.style, resize="down")
            parts |= {name + k: v for k, v in aux(level, width, before).items()}
            before = width
        skips.append(width)
        for i in range(sizes.num_blocks):
            parts[f"{name}block{i}"] = UNetBlock(
                width, wanted, sizes.style, attention=sizes.attends(level)
            )
            width = wanted
            skips.append(width)
    return nn.ModuleDict(parts), skips


def _decoder(
    sizes: _Levels,
    skips: list[int],
    aux: Callable[[int, int], Mapping[str, nn.Module]],
    *,
    attend_all: bool,
) -> nn.ModuleDict:
    """The decoder; `attend_all` for attention in all blocks of a level, not in the last alone."""
    parts: dict[str, nn.Module] = {}
    left, width = list(skips), skips[-1]
    last = len(sizes.widths) - 1
    for level in range(last, -1, -1):
        name, wanted = sizes.prefix(level), sizes.widths[level]
        if level == last:
            parts[name + "in0"] = UNetBlock(width, width, sizes.style, attention=True)
            parts[name + "in1"] = UNetBlock(width, width, sizes.style)
        else:
            parts[name + "up"] = UNetBlock(width, width, sizes.style, resize="up")
        for i in range(sizes.num_blocks + 1):
            attention = sizes.attends(level) and (attend_all or i == sizes.num_blocks)
            parts[f"{name}block{i}"] = UNetBlock(
                width + left.pop(), wanted, sizes.style, attention=attention
            )
            width = wanted
        parts |= {name + k: v for k, v in aux(level, width).items()}
    return nn.ModuleDict(parts)


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's arguments, checked and JSON-able.

    Raises:
        InputError: for one of the wrong kind or range.
    """
    config = {k: v for k, v in arguments.items() if k not in ("self", "__class__")}
    for name, value in config.items():
        if name in ("channel_mult", "attn_resolutions", "resample_filter"):
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise InputError(f"`{name}` must be a list of numbers, not {value!r}.")
            config[name] = list(value)
    for name, value in config.items():
        _check_argument(name, value)
    _check_sizes(config)
    return config


def _check_argument(name: str, value: Any) -> None:
    if name.endswith("_type"):
        return
    if name in ("dropout", "label_dropout"):
        if not _is_number(value) or not 0 <= value < 1:
            raise InputError(f"`{name}` must be a number from 0 to less than 1, not {value!r}.")
        return
    if name == "resample_filter":
        if len(value) % 2 or not all(map(_is_number, value)) or not 0 < sum(value) < math.inf:
            raise InputError(
                f"`{name}` must be an even count of numbers with a positive sum, not {value!r}."
            )
        return
    least = 0 if name in ("label_dim", "augment_dim") else 1
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(
                f"`{name}` must be made of whole numbers of at least {least}, not {value!r}."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_sizes(config: Mapping[str, Any]) -> None:
    levels, resolution = len(config["channel_mult"]), config["img_resolution"]
    if config["num_blocks"] > MOST_BLOCKS or resolution > MOST_PIXELS:
        raise InputError(
            f"A network may have up to {MOST_BLOCKS} blocks per level and images of up to "
            f"{MOST_PIXELS} pixels a side, not {config['num_blocks']} and {resolution}."
        )
    if levels == 0 or resolution % 2 ** (levels - 1):
        raise InputError(
            f"Images of {resolution}x{resolution} cannot be halved {levels - 1} times; "
            "`channel_mult` needs one to as many levels as can be."
        )
    if config["model_channels"] % 4:
        raise InputError(
            f"`model_channels` must be a multiple of 4, not {config['model_channels']}."
        )


def _part(name: str) -> str:
    """A module's name without its resolution: `16x16_block0` is `block0`."""
    return name.rpartition("_")[2]


def call_edm(
    network: nn.Module, x: Tensor, c_noise: Tensor, condition: Mapping[str, Tensor]
) -> Tensor:
    """Call a `SongUNet` or `DhariwalUNet`; the only condition they know is `class_labels`.

    Raises:
        InputError: for another condition, or labels given to (or missing from) a network that does
            not (or does) take them.
    """
    for key in condition:
        if key != CLASS_LABELS:
            raise InputError(
                f"A {type(network).__name__} takes the condition {CLASS_LABELS!r} only, "
                f"not {key!r}."
            )
    output: Tensor = network(x, c_noise, condition.get(CLASS_LABELS))
    return output


def edm_sites(network: nn.Module) -> list[str]:
    """Names of the blocks behind which DSNO mixes time.

    Every residual block that keeps the resolution, with its attention, before its skip is taken;
    of the two in the middle the first. None behind down- and upsampling blocks and the second path.
    Source: arXiv 2211.13449, fig. 2.

    Raises:
        InputError: for another kind of network.
    """
    if not isinstance(network, _EDMNetwork):
        raise InputError(
            f"A {type(network).__name__} is no network of EDM, so its time-mixing sites cannot be "
            "found; name them in `student.sites`."
        )
    return [
        f"{side}.{name}"
        for side, parts in (("enc", network.enc), ("dec", network.dec))
        for name, block in parts.items()
        if isinstance(block, UNetBlock) and not block.resize and _part(name) != "in1"
    ]


def edm_levels(network: nn.Module) -> list[Level]:
    """The submodules of each resolution, from the highest down; the two in the middle left out.

    A downsampling layer counts with the resolution it leads to, and so does an upsampling one.

    Raises:
        InputError: for another kind of network.
    """
    if not isinstance(network, _EDMNetwork):
        raise InputError(f"A {type(network).__name__} is no network of EDM.")

    def at(parts: nn.ModuleDict, side: str, size: str) -> tuple[str, ...]:
        names = (name for name in parts if name.partition("_")[0] == size)
        return tuple(f"{side}.{name}" for name in names if _part(name) not in ("in0", "in1"))

    sizes = dict.fromkeys(name.partition("_")[0] for name in network.enc)
    return [Level(at(network.enc, "enc", s), at(network.dec, "dec", s)) for s in sizes]
