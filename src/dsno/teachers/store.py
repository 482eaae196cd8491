"""A teacher and its folder: one format, whatever the teacher came from.

denoiser.json     class of the network, what its input and output mean, classes, origin
config.json, diffusion_pytorch_model.safetensors      a diffusers network, or
network.safetensors                                   any other, configured in denoiser.json
vae/              of a latent model
tokenizer/, text_encoder/        of a text-conditional one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from dsno.backbones.autoencoder import Latents
from dsno.backbones.registry import backbone, backbone_of
from dsno.backbones.safe_loading import AUTOENCODERS, NETWORKS, check_sample_shape, first_line
from dsno.backbones.text_encoder import TextEncoder
from dsno.diffusion.conditions import CLASS_LABELS, EMBEDDINGS
from dsno.diffusion.denoisers import Denoiser, Preconditioning
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import NoiseSchedule, schedule_from_config
from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError
from dsno.support.files import filling, read_json, write_json
from dsno.teachers.components import load_component, load_text_encoder
from dsno.teachers.weights import load_weights

DESCRIPTION = "denoiser.json"
WEIGHTS = "network.safetensors"
FORMAT = 2

Count = Annotated[int, Field(ge=1, lt=2**31)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Teacher:
    """A denoiser and what belongs to it.

    Attributes:
        denoiser: the network with its schedule and prediction type.
        num_classes: class labels it takes, 0 .. num_classes - 1; None for none.
        null_class: the label that means "no class", for guidance; None if it has none.
        latents: the autoencoder of a latent model.
        text: the encoder of a text-conditional model's prompts.
        origin: where it came from, for people.
    """

    denoiser: Denoiser
    num_classes: int | None = None
    null_class: int | None = None
    latents: Latents | None = None
    text: TextEncoder | None = None
    origin: str = "trained here"

    @property
    def is_textual(self) -> bool:
        """Whether it takes embedded prompts as its condition."""
        return self.text is not None

    def example_condition(self) -> dict[str, Tensor] | None:
        """A condition for a batch of one, to run the network once."""
        if self.text is not None:
            return {EMBEDDINGS: self.text.encode([""])}
        return (
            None if self.num_classes is None else {CLASS_LABELS: torch.zeros(1, dtype=torch.int64)}
        )

    def guided(self, scale: float | None, negative_prompt: str = "") -> GuidedDenoiser:
        """The teacher with classifier-free guidance at `scale`, or at one given per sample.

        Raises:
            InputError: if it has no notion of "no condition".
        """
        if self.text is not None:
            null = {EMBEDDINGS: self.text.encode([negative_prompt])[0]}
        elif self.null_class is not None:
            null = {CLASS_LABELS: torch.tensor(self.null_class)}
        else:
            raise InputError(
                "Guidance needs a teacher that also knows 'no condition': one with text, with a "
                "null class (`teacher.null_class`), or trained with `teacher.label_dropout`."
            )
        return GuidedDenoiser(self.denoiser, scale, null)


def denoiser_of(
    network: nn.Module,
    preconditioning: Preconditioning,
    sample_shape: Sequence[int],
    *,
    clip_sample: float | None = None,
    dynamic_threshold: tuple[float, float] | None = None,
) -> Denoiser:
    """A network of a known class as a denoiser."""
    return Denoiser(
        network,
        preconditioning.schedule,
        prediction_type=preconditioning.prediction_type,
        sample_shape=sample_shape,
        sigma_data=preconditioning.sigma_data,
        time_input=preconditioning.time_input,
        call=backbone_of(network).call,
        clip_sample=clip_sample,
        dynamic_threshold=dynamic_threshold,
    )


def save_teacher(teacher: Teacher, folder: Path, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a teacher's folder atomically; `extra` joins its description.

    Raises:
        InputError: if the network's class is not known by name.
    """
    denoiser = teacher.denoiser
    network: Any = denoiser.network
    known = backbone_of(network)
    threshold = denoiser.dynamic_threshold
    description = {
        "format": FORMAT,
        "backbone": known.name,
        **denoiser.preconditioning.to_config(),
        "sample_shape": list(denoiser.sample_shape),
        "clip_sample": denoiser.clip_sample,
        "dynamic_threshold": None if threshold is None else list(threshold),
        "num_classes": teacher.num_classes,
        "null_class": teacher.null_class,
        "origin": teacher.origin,
        **(extra or {}),
    }
    with filling(folder) as temporary, quiet_libraries():
        if known.name in NETWORKS:
            network.save_pretrained(temporary)
        else:
            description["network"] = known.config(network)
            tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
            save_file(tensors, temporary / WEIGHTS)
        if teacher.latents is not None:
            vae: Any = teacher.latents.vae
            vae.save_pretrained(temporary / "vae")
        if teacher.text is not None:
            encoder: Any = teacher.text.encoder
            teacher.text.tokenizer.save_pretrained(temporary / "tokenizer")
            encoder.save_pretrained(temporary / "text_encoder")
        write_json(temporary / DESCRIPTION, description)


def load_teacher(folder: Path) -> Teacher:
    """Load what `save_teacher` wrote.

    Raises:
        InputError: if the folder is not a teacher, or a file of it is damaged.
    """
    remedy = "run `dsno teacher` to train one or `dsno import` to import one"
    description = read_json(folder / DESCRIPTION, "teacher description", remedy)
    if description.get("format") != FORMAT:
        raise InputError(
            f"The teacher in {folder} has format {description.get('format')!r}, not {FORMAT}; "
            f"{remedy}."
        )
    try:
        return _read(folder, _Description.model_validate(description))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"The teacher in {folder} has a damaged description ({where}: {first['msg']}); "
            f"{remedy}."
        ) from None
    except Exception as error:  # whatever a lying description makes a library raise
        raise InputError(
            f"The teacher in {folder} cannot be loaded ({first_line(error)}); {remedy}."
        ) from None


def saved_schedule(folder: Path) -> NoiseSchedule:
    """The noise schedule of the teacher in a folder, without its network.

    Raises:
        InputError: if the folder holds no teacher, or a damaged description of one.
    """
    remedy = "give the folder of a teacher"
    description = read_json(folder / DESCRIPTION, "teacher description", remedy)
    try:
        return schedule_from_config(description.get("schedule", {}))
    except InputError as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f"The teacher in {folder} has a damaged description ({reason}); {remedy}."
        ) from None


def saved_clips(folder: Path) -> bool:
    """Whether the teacher in a folder clips or thresholds its samples; False if there is none."""
    try:
        description = read_json(folder / DESCRIPTION, "teacher description", "make it again")
    except InputError:
        return False
    return any(description.get(key) is not None for key in ("clip_sample", "dynamic_threshold"))


class _Description(BaseModel):
    """What denoiser.json must hold; other entries are for people."""

    schedule: dict[str, Any]
    prediction_type: str
    sigma_data: Positive
    time_input: str
    backbone: str
    sample_shape: Annotated[list[Count], Field(min_length=1, max_length=8)]
    clip_sample: Positive | None
    dynamic_threshold: tuple[Positive, Positive] | None
    num_classes: Count | None
    null_class: Annotated[int, Field(ge=0)] | None
    origin: str
    network: dict[str, Any] = {}


def _read(folder: Path, description: _Description) -> Teacher:
    keys = {"schedule", "prediction_type", "sigma_data", "time_input"}
    preconditioning = Preconditioning.from_config(description.model_dump(include=keys))
    check_sample_shape(description.sample_shape, str(folder / DESCRIPTION))
    known = backbone(description.backbone)
    if known.name in NETWORKS:
        network = load_component(folder, NETWORKS, "network")
    else:
        network = load_weights(lambda: known.build(description.network), folder / WEIGHTS)
    denoiser = denoiser_of(
        network,
        preconditioning,
        description.sample_shape,
        clip_sample=description.clip_sample,
        dynamic_threshold=description.dynamic_threshold,
    )
    has_text = (folder / "text_encoder").is_dir()
    return Teacher(
        denoiser,
        num_classes=description.num_classes,
        null_class=description.null_class,
        latents=Latents(load_component(folder / "vae", AUTOENCODERS, "autoencoder"))
        if (folder / "vae").is_dir()
        else None,
        text=load_text_encoder(folder / "tokenizer", folder / "text_encoder") if has_text else None,
        origin=description.origin,
    )
