"""What a recipe may say. Every section refuses keys it does not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
SpacingName = Literal["uniform", "quadratic", "karras"]
SolverName = Literal["ddim", "heun", "dpm++2m"]


class Section(BaseModel):
    """Base of every section."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Optimisation(Section):
    """How a network is trained; shared by `teacher` and `train`."""

    steps: Count
    """Optimiser steps."""
    batch_size: Count
    learning_rate: Positive
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "cosine", "milestones"] = "cosine"
    milestones: tuple[Count, ...] = ()
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor on the learning rate at each milestone."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    clip_norm: Positive = 1.0
    """Largest gradient norm."""
    ema_decay: Fraction = 0.9999
    """Of the averaged weights, warmed up as min(ema_decay, (1 + n) / (10 + n))."""
    checkpoint_every: Count = 500
    log_every: Count = 50


class Data(Section):
    """The real data."""

    source: Literal["digits"] = "digits"


class Network(Section):
    """A U-Net to train."""

    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Width of each level; the size halves from one to the next."""
    layers_per_block: Count = 1
    attention: tuple[bool, ...] = ()
    """Whether each level has self-attention; none if empty."""
    middle_attention: bool = True
    norm_num_groups: Count = 8
    time_scale_shift: bool = True
    dropout: Fraction = 0.0


class Teacher(Optimisation):
    """The diffusion model."""

    network: Network
    conditional: bool = False
    """Whether it is told the class."""
    prediction_type: Literal["epsilon", "v_prediction", "sample", "edm", "flow"] = "v_prediction"
    schedule: dict[str, Any] = {"name": "cosine"}
    """`name` (cosine, betas, edm, rectified_flow) and that schedule's fields."""
    sigma_data: Positive = 1.0
    """Standard deviation of the data; for `edm` prediction."""


class Collect(Section):
    """The trajectories."""

    count: Count
    slices: Count = 4
    """M: states stored per trajectory, at t = g(m / M), m = M - 1 .. 0."""
    grid: SpacingName = "quadratic"
    """g, the spacing of the stored times."""
    solver: SolverName = "dpm++2m"
    steps: Count = 16
    spacing: SpacingName = "uniform"
    """How the solver's steps are spread."""
    batch_size: Count = 512
    shard_size: Count = 4096
    dtype: Literal["float16", "float32"] = "float16"


class Student(Section):
    """The operator."""

    slices: Count = 4
    """Output times; must divide `collect.slices`."""
    modes: Count = 2
    """Temporal Fourier modes kept."""
    output: Literal["denoised", "state"] = "denoised"
    sites: tuple[str, ...] = ("default",)
    """Where time is mixed: `default` (the paper's sites), or names or patterns of submodules; empty
    for no temporal layers."""


class Train(Optimisation):
    """Training of the operator."""

    loss: Literal["l1", "l2", "pseudo_huber"] = "l1"
    huber_delta: Positive = 0.03
    """Error at which pseudo-Huber turns from square to absolute."""
    weight: Literal["sqrt_snr", "flat"] = "sqrt_snr"
    weight_max: Positive = 1e4
    """Cap of the sqrt-SNR weight."""


class Curve(Section):
    """Teacher samplers to measure."""

    solver: SolverName
    steps: Annotated[tuple[Count, ...], Field(min_length=1)]
    spacing: SpacingName = "uniform"


class Evaluate(Section):
    """What is measured, and against what."""

    samples: Annotated[int, Field(ge=2)] = 5000
    batch_size: Count = 500
    features: Annotated[tuple[Literal["pixels", "classifier"], ...], Field(min_length=1)] = (
        "pixels",
        "classifier",
    )
    classifier_seed: int = 0
    """The classifier does not depend on the recipe's seed, so distances of all seeds compare."""
    curves: tuple[Curve, ...] = ()
    baseline_steps: Count = 16
    """The student is compared with DDIM of so many evaluations on a uniform grid."""
    reference_steps: Count = 32
    """Steps of dpm++2m in the solution that paired errors are measured against."""
    pictures: Annotated[int, Field(ge=1, le=256)] = 64
    timing_rounds: Count = 3


class Recipe(Section):
    """Everything a run needs."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data
    teacher: Teacher
    collect: Collect
    student: Student
    train: Train
    evaluate: Evaluate

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.collect.slices % self.student.slices:
            raise ValueError(
                f"`student.slices` = {self.student.slices} must divide `collect.slices` = "
                f"{self.collect.slices}, or the student's times are not among the stored ones"
            )
        if self.collect.steps < self.collect.slices:
            raise ValueError(
                f"`collect.steps` = {self.collect.steps} cannot reach `collect.slices` = "
                f"{self.collect.slices} separate times"
            )
        return self
