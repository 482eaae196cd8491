"""The trained operator in diffusers' format: a model and a pipeline that samples in one call.

The module path and the class names stand inside saved folders: they are API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from dsno.backbones import registry
from dsno.backbones.autoencoder import Latents
from dsno.backbones.safe_loading import (
    AUTOENCODERS,
    TEXT_ENCODERS,
    check_component,
    check_model,
    check_sample_shape,
    check_text_encoder,
    first_line,
)
from dsno.backbones.text_encoder import TextEncoder
from dsno.diffusion.conditions import CLASS_LABELS, EMBEDDINGS, GUIDANCE_SCALE
from dsno.diffusion.denoisers import Preconditioning
from dsno.operator.batch_plan import BatchPlan
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig, Lifted
from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError, one_of
from dsno.support.files import read_json
from dsno.support.hub import download, looks_like_hub_id
from dsno.support.images import to_pil, to_uint8

OUTPUT_TYPES = ("pil", "np", "pt")
MAX_SLICES, MAX_SITES = 4_096, 4_096
"""Of a saved model: its tables grow with both, and no file may ask for any size."""
REMEDY = "train or download it again"


class DSNOModel(ModelMixin, ConfigMixin):
    """The operator with a JSON-able configuration, saved by `save_pretrained`.

    Args:
        backbone: name of the network's class, see `dsno.backbones.registry`.
        backbone_config: its configuration.
        preconditioning: `Preconditioning.to_config()` of the teacher.
        sample_shape: shape of one sample.
        sites: names of the submodules behind which time is mixed.
        site_channels: channels at each site.
        slices: M.
        modes: Fourier modes kept.
        channel_dim: where the sites' outputs have their channels.
        spacing: of the trained times.
        output: `denoised` or `state`.
        class_frequencies: share of each class in the training data; None if unconditional. Labels
            not asked for are drawn from it.
        guidance_scale: of the teacher's classifier-free guidance, distilled in: a number, or the
            range of those it was trained at, which makes the scale an input; None for none.
        is_textual: whether it is conditioned on embedded prompts.
        parts: which submodules do not see every slice, see
            `dsno.operator.batch_plan.BatchPlan`; None if all do.
    """

    @register_to_config
    def __init__(
        self,
        backbone: str,
        backbone_config: Mapping[str, Any],
        preconditioning: Mapping[str, Any],
        sample_shape: Sequence[int],
        sites: Sequence[str],
        site_channels: Sequence[int],
        slices: int,
        modes: int,
        channel_dim: int = 1,
        spacing: str = "quadratic",
        output: str = "denoised",
        class_frequencies: Sequence[float] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        is_textual: bool = False,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        kind = registry.backbone(backbone)
        with torch.device("cpu"):  # a schedule needs numbers also where weights are on `meta`
            meaning = Preconditioning.from_config(preconditioning)
        lifted = Lifted(
            kind.build(backbone_config),
            LiftConfig(
                sites,
                slices=slices,
                modes=modes,
                channel_dim=channel_dim,
                guidance=guidance_scale is not None and not isinstance(guidance_scale, int | float),
            ),
            site_channels,
            BatchPlan.from_config(parts),
        )
        self.operator = DSNO(
            lifted,
            meaning,
            sample_shape,
            call=kind.call,
            spacing=spacing,
            output=output,
        )

    @classmethod
    def from_operator(
        cls,
        operator: DSNO,
        *,
        class_frequencies: Sequence[float] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        is_textual: bool = False,
    ) -> DSNOModel:
        """Wrap a trained operator whose backbone is of a known class."""
        network, lifted = operator.lifted.network, operator.lifted
        kind = registry.backbone_of(network)
        given = guidance_scale if isinstance(guidance_scale, int | float | None) else None
        with torch.device("meta"):  # its weights are replaced just below
            model: DSNOModel = cls(
                backbone=kind.name,
                backbone_config=_config_of(network, kind),
                preconditioning=operator.preconditioning.to_config(),
                sample_shape=list(operator.sample_shape),
                sites=list(lifted.config.sites),
                site_channels=list(lifted.channels),
                slices=operator.slices,
                modes=lifted.config.modes,
                channel_dim=lifted.config.channel_dim,
                spacing=operator.spacing.name,
                output=operator.output,
                class_frequencies=None if class_frequencies is None else list(class_frequencies),
                guidance_scale=list(guidance_scale)
                if isinstance(guidance_scale, Sequence)
                else given,
                is_textual=is_textual,
                parts=lifted.plan.to_config(),
            )
        model.operator = operator
        return model

    def forward(
        self,
        noise: Tensor,
        class_labels: Tensor | None = None,
        times: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        guidance_scale: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """States (batch, M, *shape) of the trajectory from unit noise; see `DSNO.forward`."""
        given = {
            CLASS_LABELS: class_labels,
            EMBEDDINGS: encoder_hidden_states,
            GUIDANCE_SCALE: guidance_scale,
        }
        condition = {name: value for name, value in given.items() if value is not None}
        states: Tensor = self.operator(noise, condition or None, times, last_only=last_only)
        return states

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """The guidance scales it was trained at, if the scale is an input."""
        scale = self.config.guidance_scale
        return (scale[0], scale[1]) if isinstance(scale, Sequence) else None


def _config_of(network: nn.Module, kind: registry.Backbone) -> dict[str, Any]:
    """The configuration that builds this very network: a student's last layer may be narrower."""
    config = kind.config(network)
    last: Any = getattr(network, "conv_out", None)
    if "out_channels" in config and isinstance(last, nn.Conv2d):
        config["out_channels"] = last.out_channels
    return config


@dataclass
class DSNOPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: a list of PIL images; or an array (batch, H, W, C) in [0, 1] for `np`; or, for `pt`
            and for samples that are not images, the states themselves, (batch, *shape).
        trajectory: (batch, times, *shape), if asked for.
        times: (times,), float64, of the trajectory; falling, 1 is noise and 0 data.
        class_labels: (batch,), of a conditional model.
        latents: (batch, *shape), what a latent model's images were decoded from.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    trajectory: Tensor | None = None
    times: Tensor | None = None
    class_labels: Tensor | None = None
    latents: Tensor | None = None


class DSNOPipeline(DiffusionPipeline):
    """Sample a trained operator: noise in, samples out, one network evaluation.

    Args:
        model: the operator.
        vae: the autoencoder of a latent model.
        text_encoder: of a text-conditional model.
        tokenizer: of a text-conditional model.

    Example:
        >>> pipeline = DSNOPipeline.from_pretrained("runs/digits/student")  # doctest: +SKIP
        >>> images = pipeline(batch_size=16).images  # doctest: +SKIP
    """

    _optional_components: ClassVar[list[str]] = ["vae", "text_encoder", "tokenizer"]

    def __init__(
        self, model: DSNOModel, vae: Any = None, text_encoder: Any = None, tokenizer: Any = None
    ) -> None:
        super().__init__()
        self.register_modules(model=model, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> DSNOPipeline:
        """Load a folder written by `save_pretrained` (or by `dsno train`), or a Hub id.

        Args:
            folder: local folder, or `owner/name` on the Hub, which is downloaded first.
            kwargs: passed to `DiffusionPipeline.from_pretrained` (`torch_dtype`, ...).

        Raises:
            InputError: if it is not such a folder, or a file of it is damaged.
        """
        path = Path(folder)
        if not path.is_dir() and looks_like_hub_id(str(folder)):
            path = download(str(folder))
        if not (path / "model_index.json").is_file():
            raise InputError(
                f"{folder} is not a trained model (no model_index.json); give the folder that "
                "`dsno train` wrote, such as runs/digits/student."
            )
        kwargs.setdefault("low_cpu_mem_usage", False)  # the other way needs accelerate
        try:
            _check_folder(path, given=kwargs)
            with quiet_libraries():
                pipeline = super().from_pretrained(path, use_safetensors=True, **kwargs)
        except InputError:
            raise
        except Exception as error:  # whatever a lying file makes a library raise
            raise InputError(
                f"The model in {folder} cannot be loaded ({first_line(error)}); {REMEDY}."
            ) from None
        if not isinstance(pipeline, cls):
            raise InputError(f"{folder} holds a {type(pipeline).__name__}, not a {cls.__name__}.")
        return pipeline

    @property
    def decode(self) -> Callable[[Tensor], Tensor]:
        """From the model's states to images: the autoencoder, or nothing to do."""
        return (lambda states: states) if self.vae is None else Latents(self.vae).decode

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (len(prompts), L, D) of prompts, float32.

        Raises:
            InputError: if the model takes no text, or was saved without its text encoder.
        """
        if not self.model.config.is_textual:
            raise InputError("This model is not conditioned on text: it takes no prompt.")
        if self.tokenizer is None or self.text_encoder is None:
            raise InputError(
                "This model was saved without its text encoder: give prompt_embeds instead of "
                "prompt."
            )
        return TextEncoder(self.tokenizer, self.text_encoder).encode(prompts)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | Sequence[int] | np.ndarray | Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        output_type: str = "pil",
        return_trajectory: bool = False,
        times: Sequence[float] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        guidance_scale: float | Sequence[float] | Tensor | None = None,
    ) -> DSNOPipelineOutput:
        """Make samples.

        Args:
            batch_size: how many; by default as many as there are labels, prompts or noises, or 1.
            class_labels: one class for all, or one per sample; drawn with the frequencies of the
                training data if the model is conditional and none are given.
            generator: of the noise (and the labels).
            noise: unit normal (batch, *shape), instead of drawing it.
            output_type: `pil`, `np` (batch, H, W, C) in [0, 1], or `pt`: the tensor as it is.
            return_trajectory: also return the states x(t), at `times` or at the trained times.
            times: times in [0, 1] for the trajectory, in any number: the output is continuous.
            prompt: of a text-conditional model: one for all, or one per sample.
            prompt_embeds: their embeddings (batch, L, D), instead.
            guidance_scale: of a model trained at a range of scales: one for all, or one per sample;
                the middle of the range if none is given.

        Raises:
            InputError: for a batch size below 1, labels out of range or given to an unconditional
                model, no prompt for a text-conditional one, a guidance scale where it is no input,
                sizes that disagree, times without `return_trajectory`, or an unknown output type.
        """
        one_of(output_type, OUTPUT_TYPES, "output type")
        if times is not None and not return_trajectory:
            raise InputError("Times are of the trajectory: give return_trajectory=True too.")
        operator, model = self.model.operator, self.model
        count = _batch_size(
            batch_size=batch_size,
            class_labels=class_labels,
            noise=noise,
            prompt=None if isinstance(prompt, str) else prompt,
            prompt_embeds=prompt_embeds,
            guidance_scale=guidance_scale,
        )
        if noise is None:
            place = generator.device if generator is not None else torch.device("cpu")
            noise = torch.randn(count, *operator.sample_shape, generator=generator, device=place)
        noise = noise.to(device=model.device, dtype=model.dtype)
        condition = {
            CLASS_LABELS: _labels(class_labels, count, model.config.class_frequencies, generator),
            EMBEDDINGS: self._embeddings(prompt, prompt_embeds, count),
            GUIDANCE_SCALE: _scales(guidance_scale, count, model),
        }
        condition = {k: None if v is None else v.to(model.device) for k, v in condition.items()}
        asked = operator.times
        if times is None:
            states = model(noise, last_only=not return_trajectory, **condition)
        else:  # the sample is the state at one more time, of the same evaluation
            asked = torch.as_tensor(times, dtype=torch.float64)
            every = torch.cat([asked, torch.zeros_like(asked[:1])])
            states = model(noise, times=every, **condition)
        samples = states[:, -1]
        return DSNOPipelineOutput(
            _convert(self.decode(samples), output_type),
            states[:, : len(asked)] if return_trajectory else None,
            asked if return_trajectory else None,
            condition[CLASS_LABELS],
            None if self.vae is None else samples,
        )

    def _embeddings(
        self, prompt: str | Sequence[str] | None, embeds: Tensor | None, count: int
    ) -> Tensor | None:
        if not self.model.config.is_textual:
            if prompt is not None or embeds is not None:
                raise InputError("This model is not conditioned on text: it takes no prompt.")
            return None
        if embeds is not None and prompt is None:
            return embeds.to(self.model.dtype).expand(count, -1, -1)
        if prompt is None or embeds is not None:
            raise InputError(
                "This model is conditioned on text: give either prompt or prompt_embeds."
            )
        encoded = self.embed([prompt] if isinstance(prompt, str) else prompt)
        return encoded.to(self.model.dtype).expand(count, -1, -1)


def _check_folder(folder: Path, given: Mapping[str, Any]) -> None:
    """Check a pipeline's folder before the library sees it, which imports what its files name.

    Args:
        folder: with model_index.json.
        given: components that the caller gives instead of the folder.

    Raises:
        InputError: for other classes than a pipeline of ours has, code beside them, or weights that
            are pickled or do not fit their configuration.
    """
    index = read_json(folder / "model_index.json", "model index", REMEDY)
    name = index.get("_class_name")
    if (name[-1:] if isinstance(name, list) else [name]) != [DSNOPipeline.__name__]:
        raise InputError(f"{folder} holds a {name!r:.60}, not a {DSNOPipeline.__name__}; {REMEDY}.")
    parts = ("model", *DSNOPipeline._optional_components)
    # Some versions of the library take such files for the classes that the index names.
    for code in (f for place in ("", *parts) for f in (folder / place).glob("*.py")):
        raise InputError(f"{code} is Python code, which a model's folder may not hold; remove it.")
    for part in parts:
        kind = index.get(part)
        if part in given or kind in (None, [None, None]):
            continue
        if not _is_known(part, kind):
            raise InputError(
                f"The {part} in {folder} is a {kind!r:.60}, which is not supported; {REMEDY}."
            )
        found = _check_part(folder / part, part)
        if found not in (kind[1], None):
            raise InputError(
                f"The {part} in {folder} is a {found!r:.60}, expected {kind[1]!r}; {REMEDY}."
            )


def _is_known(part: str, kind: Any) -> bool:
    """Whether a component's entry of the index, [library, class], is one that we write."""
    if not isinstance(kind, list) or not all(isinstance(k, str) for k in kind) or len(kind) != 2:
        return False
    library: str = kind[0]
    name: str = kind[1]
    if part == "tokenizer":
        return library == "transformers" and name.endswith(("Tokenizer", "TokenizerFast"))
    known: dict[str, tuple[str, tuple[str, ...]]] = {
        "model": (DSNOModel.__module__, (DSNOModel.__name__,)),
        "vae": ("diffusers", AUTOENCODERS),
        "text_encoder": ("transformers", TEXT_ENCODERS),
    }
    home, names = known[part]
    return library == home and name in names


def _check_part(folder: Path, part: str) -> str | None:
    """Check the files of one component; return its class, if they say it."""
    if part == "vae":
        return check_component(folder, AUTOENCODERS, "autoencoder")
    if part == "text_encoder":
        return check_text_encoder(folder)
    if part == "model":
        config = read_json(folder / "config.json", "configuration of the model", REMEDY)
        _check_sizes(config, folder)
        check_model(folder, config, lambda: DSNOModel.from_config(config), "model")
    return None


def _check_sizes(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model whose tables, which are not among its weights, would be too large."""
    slices, sites = config.get("slices"), config.get("sites")
    if not isinstance(slices, int) or not 1 <= slices <= MAX_SLICES:
        raise InputError(
            f"The model in {folder} has {slices!r:.60} slices, and 1 to {MAX_SLICES:,} are "
            f"supported; {REMEDY}."
        )
    if not isinstance(sites, list) or len(sites) > MAX_SITES:
        raise InputError(
            f"The model in {folder} has no list of at most {MAX_SITES:,} sites; {REMEDY}."
        )
    shape = config.get("sample_shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise InputError(f"The model in {folder} does not say its sample_shape; {REMEDY}.")
    check_sample_shape(shape, f"The model in {folder}")


def _batch_size(**given: Any) -> int:
    """The number of samples that every argument with a batch dimension agrees on."""
    sizes = {}
    for name, value in given.items():
        if isinstance(value, int) and name == "batch_size":
            sizes[name] = value
        elif value is not None and np.ndim(value) > 0:
            sizes[name] = len(value)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"The numbers of samples disagree: {listed}.")
    count = next(iter(sizes.values()), 1)
    if count < 1:
        raise InputError(f"The number of samples must be at least 1, not {count}.")
    return count


def _scales(given: Any, count: int, model: DSNOModel) -> Tensor | None:
    """The guidance scale of every sample, if it is an input."""
    scale = model.config.guidance_scale
    if model.guidance_range is None:
        if given is not None:
            fixed = "has no guidance" if scale is None else f"has guidance {scale:g} distilled in"
            raise InputError(f"This model {fixed}: it takes no guidance_scale.")
        return None
    low, high = model.guidance_range
    scales = torch.as_tensor((low + high) / 2 if given is None else given, dtype=torch.float32)
    wrong = scales[(scales < low) | (scales > high)] if scales.ndim else scales
    if bool(((scales < low) | (scales > high)).any()):
        first = float(wrong.flatten()[0])
        raise InputError(
            f"The guidance scale {first:g} is outside the range this model was trained at, "
            f"{low:g} to {high:g}."
        )
    return scales.expand(count)


def _labels(
    given: Any, count: int, frequencies: Sequence[float] | None, generator: torch.Generator | None
) -> Tensor | None:
    if frequencies is None:
        if given is not None:
            raise InputError("This model is unconditional: it takes no class labels.")
        return None
    if given is None:
        place = generator.device if generator else torch.device("cpu")
        weights = torch.tensor(frequencies, dtype=torch.float32, device=place)
        return torch.multinomial(weights, count, replacement=True, generator=generator)
    labels = torch.as_tensor(given).reshape(-1)
    if labels.is_floating_point():
        raise InputError("Class labels must be whole numbers.")
    labels = labels.to(torch.int64)
    wrong = labels[(labels < 0) | (labels >= len(frequencies))]
    if len(wrong):
        raise InputError(
            f"Class {int(wrong[0])} is out of range: the model knows classes 0 to "
            f"{len(frequencies) - 1}."
        )
    return labels.expand(count)


def _convert(samples: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    if output_type == "pt" or samples.ndim != 4:
        return samples
    if output_type == "np":
        return to_uint8(samples.float().cpu()).astype(np.float32) / 255
    return to_pil(samples.float().cpu())


def save_pipeline(
    model: DSNOModel, folder: Path, latents: Latents | None = None, text: TextEncoder | None = None
) -> None:
    """Write the pipeline layout: model_index.json, model/ and what decodes and encodes for it."""
    pipeline = DSNOPipeline(
        model,
        vae=None if latents is None else latents.vae,
        text_encoder=None if text is None else text.encoder,
        tokenizer=None if text is None else text.tokenizer,
    )
    with quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
