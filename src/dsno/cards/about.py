"""What a pipeline itself says of its model: what it makes, of what, and how it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsno.evaluation.wording import in_evaluations
from dsno.sampling.dial import cost
from dsno.sampling.folder import TEACHER, TEXT_ENCODER, VAE

if TYPE_CHECKING:
    from dsno.pipeline import DSNOPipeline

_COLOURS = {1: "grey images", 2: "grey images with alpha", 3: "RGB images", 4: "RGBA images"}


@dataclass(frozen=True)
class About:
    """A model as its users see it.

    Attributes:
        sample_shape: of the operator's states.
        classes: how many it is conditioned on, or None.
        guidance: distilled in: a scale, a range of them, or None.
        is_textual: whether it is conditioned on prompts.
        is_latent: whether states are decoded by an autoencoder.
        times: that it was trained at, falling to 0.
        network: class of the teacher's network, which it is a lifted copy of.
        meaning: configuration of the teacher's `Preconditioning`.
        parameters: of the operator.
        dtype: of its weights as they are saved.
        step_cost: evaluations of the teacher in each further step; None without a teacher.
        components: what else is in its folder, by the names of their folders there.
    """

    sample_shape: Sequence[int]
    classes: int | None
    guidance: float | Sequence[float] | None
    is_textual: bool
    is_latent: bool
    times: Sequence[float]
    network: str
    meaning: Mapping[str, Any]
    parameters: int
    dtype: str
    step_cost: int | None
    components: Mapping[str, str]

    @classmethod
    def of(cls, pipeline: DSNOPipeline) -> About:
        """What a pipeline says of its model."""
        model, config, teacher = pipeline.model, pipeline.model.config, pipeline.teacher
        others = {VAE: "Autoencoder", TEXT_ENCODER: "Text encoder", TEACHER: "Teacher"}
        frequencies = config.class_frequencies
        return cls(
            sample_shape=config.sample_shape,
            classes=None if frequencies is None else len(frequencies),
            guidance=config.guidance_scale,
            is_textual=config.is_textual,
            is_latent=pipeline.vae is not None,
            times=model.operator.times.tolist(),
            network=config.backbone,
            meaning=config.preconditioning,
            parameters=sum(p.numel() for p in model.parameters()),
            dtype=str(model.dtype).removeprefix("torch."),
            step_cost=None if teacher is None else cost(teacher, 2) - cost(teacher, 1),
            components={k: v for k, v in others.items() if getattr(pipeline, k) is not None},
        )

    @property
    def is_image(self) -> bool:
        """Whether its samples are images."""
        return self.is_latent or (len(self.sample_shape) == 3 and self.sample_shape[0] in _COLOURS)

    @property
    def what(self) -> str:
        """What it makes, as the subject of a sentence."""
        shape = tuple(self.sample_shape)
        if self.is_latent:
            made = "images, by way of latents"
        elif self.is_image:
            made = f"{shape[1]} x {shape[2]} {_COLOURS[shape[0]]}"
        else:
            made = f"samples of shape {' x '.join(map(str, shape))}"
        if self.is_textual:
            return f"{made} from text"
        return made if self.classes is None else f"{made} in {self.classes:,} classes"

    def rows(self, sampling_cost: float | None) -> list[tuple[str, str]]:
        """What it is, line by line.

        Args:
            sampling_cost: multiply-adds of a sample in evaluations of the teacher's network, if
                they were counted.
        """
        times = ", ".join(f"{t:g}" for t in self.times)
        cost = "one evaluation of its network"
        if sampling_cost is not None:
            cost += f" ({sampling_cost:.2f} of the teacher's in multiply-adds)"
        further = "no, its teacher is not in this folder"
        if self.step_cost is not None:
            calls = in_evaluations(self.step_cost)
            further = f"yes (`num_inference_steps`): {calls} of the teacher for each further step"
        schedule = self.meaning["schedule"]["name"]
        found = [
            ("Makes", self.what),
            ("Cost of a sample", cost),
            ("More than one step", further),
            ("Parameters", f"{self.parameters:,}, saved as {self.dtype}"),
            ("Network", f"{self.network}, lifted to the times {times} (1 is noise, 0 is data)"),
            ("Noise schedule and prediction", f"{schedule}, {self.meaning['prediction_type']}"),
        ]
        if isinstance(self.guidance, int | float):
            found.append(("Guidance", f"scale {self.guidance:g}, distilled in"))
        elif self.guidance is not None:
            low, high = self.guidance
            found.append(("Guidance", f"scale {low:g} to {high:g}, an input (`guidance_scale`)"))
        return found + [(kind, f"in `{name}/`") for name, kind in self.components.items()]

    def code(self, source: str) -> str:
        """How to load it from a folder or Hub id, and sample it."""
        asked = ["batch_size=16"]
        if self.is_textual:
            asked = ['prompt="..."', "num_images_per_prompt=4"]
        elif self.classes is not None:
            asked.append(f"class_labels={self.classes - 1}")
        asked.append("generator=torch.Generator().manual_seed(0)")
        kind = "" if self.is_image else ', output_type="raw"'
        return "\n".join(
            [
                "import torch",
                "from dsno import DSNOPipeline",
                "",
                f'pipeline = DSNOPipeline.from_pretrained("{source}")',
                f"samples = pipeline({', '.join(asked)}{kind}).images",
            ]
        )

    def options(self) -> list[str]:
        """What else can be asked for."""
        found = []
        if self.classes is not None:
            found.append(
                f"`class_labels`: a class from 0 to {self.classes - 1} for all samples, or one for "
                "each; drawn with the frequencies of the training data if left out."
            )
        if self.guidance is not None and not isinstance(self.guidance, int | float):
            low, high = self.guidance
            found.append(
                f"`guidance_scale` from {low:g} to {high:g}, {(low + high) / 2:g} if left out."
            )
        if self.step_cost is not None:
            found.append(
                "`num_inference_steps=3`: the teacher's solver goes on from the operator's state."
            )
        found += [
            "`return_trajectory=True`: the states at all trained times, or at any `times=[...]`, "
            "from the same evaluation.",
            '`output_type`: `"pil"`, `"np"`, `"pt"`, `"latent"` or `"raw"`.',
            '`pipeline.to("cuda")`, `dtype=torch.bfloat16`, `pipeline.enable_model_cpu_offload()` '
            "and `pipeline.model = torch.compile(pipeline.model)`, as in diffusers.",
        ]
        return found
