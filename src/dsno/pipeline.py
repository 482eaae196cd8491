"""The trained operator in diffusers' format: a model and a pipeline that samples in one call.

The module path and the class names stand inside saved folders: they are API.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from dsno.backbones.unet import call_unet
from dsno.denoisers import Preconditioning
from dsno.errors import InputError, one_of
from dsno.images import to_pil, to_uint8
from dsno.operator import DSNO, Lifted

OUTPUT_TYPES = ("pil", "np", "pt")


class DSNOModel(ModelMixin, ConfigMixin):
    """The operator with a JSON-able configuration, saved by `save_pretrained`.

    Args:
        backbone: name of a diffusers model class.
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
    ) -> None:
        super().__init__()
        one_of(backbone, ("UNet2DModel",), "backbone")
        network = diffusers.UNet2DModel.from_config(dict(backbone_config))
        lifted = Lifted(
            network, sites, site_channels, slices=slices, modes=modes, channel_dim=channel_dim
        )
        self.operator = DSNO(
            lifted,
            Preconditioning.from_config(preconditioning),
            sample_shape,
            call=call_unet,
            spacing=spacing,
            output=output,
        )

    @classmethod
    def from_operator(
        cls, operator: DSNO, *, class_frequencies: Sequence[float] | None = None
    ) -> DSNOModel:
        """Wrap a trained operator with a diffusers backbone."""
        network: Any = operator.lifted.network
        model: DSNOModel = cls(
            backbone=type(network).__name__,
            backbone_config={
                k: v for k, v in dict(network.config).items() if not k.startswith("_")
            },
            preconditioning=operator.preconditioning.to_config(),
            sample_shape=list(operator.sample_shape),
            sites=list(operator.lifted.sites),
            site_channels=list(operator.lifted.channels),
            slices=operator.slices,
            modes=operator.lifted.modes,
            channel_dim=operator.lifted.channel_dim,
            spacing=operator.spacing.name,
            output=operator.output,
            class_frequencies=None if class_frequencies is None else list(class_frequencies),
        )
        model.operator = operator
        return model

    def forward(
        self, noise: Tensor, class_labels: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        """States (batch, M, *shape) of the trajectory from unit noise (batch, *shape)."""
        condition = None if class_labels is None else {"class_labels": class_labels}
        states: Tensor = self.operator(noise, condition, times)
        return states


@dataclass
class DSNOPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: a list of PIL images; or an array (batch, H, W, C) in [0, 1] for `np`; or, for `pt`
            and for samples that are not images, the states themselves, (batch, *shape).
        trajectory: (batch, times, *shape), if asked for.
        times: (times,), float64, of the trajectory; falling, 1 is noise and 0 data.
        class_labels: (batch,), of a conditional model.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    trajectory: Tensor | None = None
    times: Tensor | None = None
    class_labels: Tensor | None = None


class DSNOPipeline(DiffusionPipeline):
    """Sample a trained operator: noise in, samples out, one network evaluation.

    Example:
        >>> pipeline = DSNOPipeline.from_pretrained("runs/digits/student")  # doctest: +SKIP
        >>> images = pipeline(batch_size=16).images  # doctest: +SKIP
    """

    def __init__(self, model: DSNOModel) -> None:
        super().__init__()
        self.register_modules(model=model)

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
        if (
            not path.is_dir()
            and str(folder).count("/") == 1
            and not str(folder).startswith((".", "~"))
        ):
            path = _download(str(folder))
        if not (path / "model_index.json").is_file():
            raise InputError(
                f"{folder} is not a trained model (no model_index.json); give the folder that "
                "`dsno train` wrote, such as runs/digits/student."
            )
        kwargs.setdefault("low_cpu_mem_usage", False)  # the other way needs accelerate
        try:
            with _quiet():
                pipeline = super().from_pretrained(path, use_safetensors=True, **kwargs)
        except InputError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            text = str(error).strip().splitlines()
            raise InputError(
                f"The model in {folder} cannot be loaded ({text[0] if text else error!r}); "
                "train or download it again."
            ) from None
        if not isinstance(pipeline, cls):
            raise InputError(f"{folder} holds a {type(pipeline).__name__}, not a {cls.__name__}.")
        return pipeline

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
    ) -> DSNOPipelineOutput:
        """Make samples.

        Args:
            batch_size: how many; by default as many as there are labels or noises, or 1.
            class_labels: one class for all, or one per sample; drawn with the frequencies of the
                training data if the model is conditional and none are given.
            generator: of the noise (and the labels).
            noise: unit normal (batch, *shape), instead of drawing it.
            output_type: `pil`, `np` (batch, H, W, C) in [0, 1], or `pt`: the tensor as it is.
            return_trajectory: also return the states x(t), at `times` or at the trained times.
            times: times in [0, 1] for the trajectory, in any number: the output is continuous.

        Raises:
            InputError: for a batch size below 1, labels out of range or given to an unconditional
                model, sizes that disagree, times without `return_trajectory`, or an unknown
                output type.
        """
        one_of(output_type, OUTPUT_TYPES, "output type")
        if times is not None and not return_trajectory:
            raise InputError("Times are of the trajectory: give return_trajectory=True too.")
        operator, model = self.model.operator, self.model
        count = _batch_size(batch_size, class_labels, noise)
        if noise is None:
            place = generator.device if generator is not None else torch.device("cpu")
            noise = torch.randn(count, *operator.sample_shape, generator=generator, device=place)
        noise = noise.to(device=model.device, dtype=model.dtype)
        labels = _labels(class_labels, count, model.config.class_frequencies, generator)
        if labels is not None:
            labels = labels.to(model.device)
        asked = operator.times
        if times is None:
            states = model(noise, labels)
        else:  # the sample is the state at one more time, of the same evaluation
            asked = torch.as_tensor(times, dtype=torch.float64)
            states = model(noise, labels, torch.cat([asked, torch.zeros_like(asked[:1])]))
        images = _convert(states[:, -1], output_type)
        if not return_trajectory:
            return DSNOPipelineOutput(images, class_labels=labels)
        return DSNOPipelineOutput(images, states[:, : len(asked)], asked, labels)


def _batch_size(batch_size: int | None, labels: Any, noise: Tensor | None) -> int:
    sizes = {"batch_size": batch_size, "noise": None if noise is None else len(noise)}
    if labels is not None and np.ndim(labels) > 0:
        sizes["class_labels"] = len(labels)
    given = {name: size for name, size in sizes.items() if size is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in given.items())
        raise InputError(f"The numbers of samples disagree: {listed}.")
    count = next(iter(given.values()), 1)
    if count < 1:
        raise InputError(f"The number of samples must be at least 1, not {count}.")
    return count


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


def _download(name: str) -> Path:
    """A Hub repository as a local folder: diffusers loads external classes from folders only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"There is no local folder {name}, and it cannot be downloaded from the Hub "
            f"({type(error).__name__}); check the name or the connection."
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence diffusers' loading bar for a single small component."""
    shown = diffusers.utils.logging.is_progress_bar_enabled()
    diffusers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers.utils.logging.enable_progress_bar()


def save_pipeline(model: DSNOModel, folder: Path) -> None:
    """Write the pipeline layout: model_index.json and model/ with config and safetensors."""
    DSNOPipeline(model).save_pretrained(folder, safe_serialization=True)
