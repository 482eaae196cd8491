"""What a recipe may say. Every section refuses keys it does not know.

Each key says in its type what another value of it does to a result, see `dsno.recipes.effects`; in
a section with `EFFECT`, that is the effect of all keys that say nothing else.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dsno.recipes.choices import (
    Arithmetic,
    Compilation,
    DataSource,
    Decay,
    FeatureName,
    Lift,
    Loss,
    OperatorOutput,
    Precision,
    PredictionType,
    Resampling,
    SliceWeight,
    Solver,
    SpacingName,
    StorageType,
    Tracker,
)
from dsno.recipes.effects import (
    Effect,
    LaterResult,
    LaterResultOfFile,
    Neutral,
    Result,
    ResultOfFile,
    Rounding,
    effect,
    section_of,
)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=8, le=256)]
"""Pixels a side of an image may have."""


class Section(BaseModel):
    """Base of every section.

    Raises:
        TypeError: when a section is defined, if a key does not say what it does to a result.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )
    EFFECT: ClassVar[Effect | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if section_of(field) is None and effect(cls, name) is None:
                raise TypeError(f"{cls.__name__}.{name} does not say what it does to a result")


def _require(section: Section, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if getattr(section, name) is None:
            raise ValueError(f"The recipe lacks '{where}.{name}'; add it")


class Optimisation(Section):
    """How a network is trained; shared by `teacher` and `train`."""

    steps: Result[Count | None] = None
    """Optimiser steps."""
    batch_size: Result[Count | None] = None
    """Of a step, over all processes and accumulation together."""
    learning_rate: Result[Positive | None] = None
    """At its peak."""
    warmup_steps: Result[Whole] = 0
    """Steps of linear warm-up from 0."""
    decay: Result[Decay] = "cosine"
    """What follows the warm-up: `constant`, `cosine` to 0 at the last step, or `milestones`."""
    milestones: Result[tuple[Count, ...]] = ()
    gamma: Result[Annotated[float, Field(gt=0, le=1)]] = 0.5
    """Factor on the learning rate at each milestone."""
    weight_decay: Result[Annotated[float, Field(ge=0)]] = 0.0
    """Decoupled (AdamW); 0 is Adam."""
    betas: Result[tuple[Fraction, Fraction]] = (0.9, 0.999)
    """Of Adam."""
    clip_norm: Result[Positive | None] = 1.0
    """Largest gradient norm; null for no limit."""
    ema_decay: Result[Fraction] = 0.9999
    """Of the averaged weights, warmed up as min(ema_decay, (1 + n) / (10 + n))."""
    accumulation: Rounding[Count] = 1
    """Micro-batches each process splits its share of a batch into, to save memory."""
    cpu_replicas: Rounding[Count] = 1
    """On a CPU, replicas of the network that compute a part of each micro-batch each, side by side
    as far as there are cores, with one thread each: faster for small networks, and a result that
    does not depend on the number of cores. Several processes, `compile` and `shard` go without."""
    mixed_precision: Result[Precision] = "no"
    """Arithmetic of the network; the weights stay float32."""
    gradient_checkpointing: Rounding[bool] = False
    """Save memory by computing activations again in the backward pass."""
    compile: Rounding[Compilation] = False
    """Compile the network (`torch.compile`). `reduce-overhead` also starts it as one CUDA graph on
    a GPU, for networks whose kernels are shorter than their launches; not with `shard`."""
    channels_last: Rounding[bool] = False
    """Keep weights and images of convolutions in memory with their channels last, as tensor cores
    take them; compiled networks on a GPU choose by themselves."""
    shard: Rounding[bool] = False
    """Spread weights and optimiser state over the processes (FSDP) rather than replicate them."""
    checkpoint_every: Neutral[Count] = 500
    """Steps between checkpoints."""
    keep: Neutral[Count] = 2
    """Newest checkpoints kept, besides the one with the lowest loss."""
    log_every: Neutral[Count] = 50
    """Steps between records of the history, which the report plots."""
    log_images_every: Neutral[Count | None] = None
    """Steps between samples in the log; null for none."""
    log_with: Neutral[tuple[Tracker, ...]] = ("tensorboard",)
    """Trackers, by Accelerate's names; those that write files write to the run's logs/ folder."""

    @model_validator(mode="after")
    def _weights_stay(self) -> Self:
        if self.compile == "reduce-overhead" and self.shard:
            raise ValueError(
                "`compile` = reduce-overhead replays a CUDA graph on weights that stay where they "
                "are, which those of `shard` do not; set one of the two to false"
            )
        return self


class Data(Section):
    """The real data: what a teacher is trained on, and what samples are compared with."""

    EFFECT: ClassVar[Effect | None] = Effect.RESULT

    source: DataSource = "digits"
    """`digits` ships with scikit-learn, `emoji` with `pip install 'dsno[emoji]'`; the others need
    `path`."""
    path: ResultOfFile[str] = ""
    """Folder or .zip file of images, .npz file, or a Hugging Face data set: Hub id or local
    parquet."""
    split: str = "train"
    """Of a Hugging Face data set, or of a folder that has `train`, `test` and so on in it."""
    size: Side | tuple[Side, Side] | None = None
    """Resize and crop to this square, or to [height, width]; as they are if null."""
    channels: Annotated[int, Field(ge=1, le=4)] | None = None
    """Convert to grey, grey + alpha, RGB or RGBA; as they are if null."""
    image_column: str = ""
    """Column of a Hugging Face data set, or array of an .npz file; found by type or name if
    empty."""
    label_column: str = ""
    """Likewise, or column of a folder's metadata.csv or metadata.jsonl."""
    labels: Literal["auto", "none", "folders", "file"] = "auto"
    """Where classes come from: `none` ignores them, `folders` are sub-folders in the order of their
    names, `file` is dataset.json, metadata.csv or metadata.jsonl in the folder, or the array in the
    .npz file. `auto` takes what is there and refuses what contradicts itself."""
    classes: Annotated[int, Field(ge=1)] | tuple[str, ...] | None = None
    """Number of classes, of which labels are the numbers from 0; or their names in order. Found in
    the data if null."""
    range: tuple[float, float] | None = None
    """Values that are black and white, such as [0, 1] or [0, 65535]. If null, 8-bit pixels have
    [0, 255], and arrays of other types what their values leave no doubt of."""
    layout: Literal["auto", "NHWC", "NCHW", "NHW"] = "auto"
    """Order of an .npz file's axes: number, channels, height, width."""
    background: str = ""
    """Colour behind transparent pixels, which removes the alpha channel: `white`, `rgb(0, 0, 0)` or
    another that CSS knows. If empty, alpha is kept, or transparent pixels are refused where
    `channels` leaves no room for it."""
    frames: Literal["one", "first"] = "one"
    """`one` refuses images of several frames or pages, `first` takes the first."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """`skip` leaves out damaged images; all are decoded once to find them."""
    random_flip: bool = False
    """Mirror half of the training images, at random."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.range is not None and not (
            all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]
        ):
            raise ValueError(
                f"`data.range` = {list(self.range)} needs two finite values, the smaller one first"
            )
        if isinstance(self.classes, tuple) and len(set(self.classes)) < max(1, len(self.classes)):
            raise ValueError("`data.classes` needs at least one name, and each only once")
        if self.background:
            try:
                ImageColor.getrgb(self.background)
            except ValueError:
                raise ValueError(
                    f"`data.background` = {self.background!r} is no colour; give a name such as "
                    "white or rgb(255, 255, 255)"
                ) from None
            if self.channels in (2, 4):
                raise ValueError(
                    f"`data.background` removes the alpha channel that `data.channels` = "
                    f"{self.channels} asks for; leave one out"
                )
        return self


class Network(Section):
    """A U-Net to train."""

    EFFECT: ClassVar[Effect | None] = Effect.RESULT

    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Width of each level; the size halves from one to the next."""
    layers_per_block: Count = 1
    attention: tuple[bool, ...] = ()
    """Whether each level has self-attention; none if empty."""
    middle_attention: bool = True
    head_channels: Count | None = None
    """Channels per attention head; one head if null."""
    norm_num_groups: Count = 8
    norm_eps: Positive = 1e-5
    time_scale_shift: bool = True
    resample: Resampling = "conv"
    """How sizes change: by a convolution, or by a residual block (BigGAN's)."""
    dropout: Fraction = 0.0


class Teacher(Optimisation):
    """The diffusion model: an existing one (`source`), or one trained here (`network`)."""

    source: ResultOfFile[str] = ""
    """A folder, file or Hub id that `dsno import` accepts; empty to train one here."""
    network: Network | None = None
    conditional: Result[bool] = False
    """Whether a teacher trained here is conditioned on the class."""
    label_dropout: Result[Fraction] = 0.0
    """Share of training images whose class is withheld, which makes guidance possible."""
    prediction_type: Result[PredictionType | None] = None
    """v_prediction for one trained here; by default as `source` says."""
    schedule: Result[dict[str, Any] | None] = None
    """`name` (cosine, betas, edm, rectified_flow) and that schedule's fields. The cosine one if
    trained here; by default as `source` says."""
    sigma_data: Result[Positive | None] = None
    """Standard deviation of the data, for `edm` prediction: if null, 1 for a teacher trained here
    and otherwise as `source` says."""
    clip_sample: Result[bool | None] = None
    """Clip the denoised estimate to [-1, 1]; as the source says if null."""
    null_class: Result[Whole | None] = None
    """The label that means "no class", if `source` does not say."""
    image_size: Result[Count | tuple[Count, Count] | None] = None
    """Of the samples, if `source` does not say: of a square, or height and width, in the network's
    own pixels or latents."""
    scheduler: Result[dict[str, Any] | None] = None
    """Fields in place of those of the scheduler of `source`; null for one to leave out."""

    @model_validator(mode="after")
    def _has_source_or_network(self) -> Self:
        if not self.source:
            _require(self, ("network", "steps", "batch_size", "learning_rate"), "teacher")
        if self.label_dropout and not self.conditional:
            raise ValueError("`teacher.label_dropout` needs `teacher.conditional` = true")
        return self


def with_teacher_defaults(values: Any) -> Any:
    """A recipe's plain values with the schedule and prediction of a teacher trained here."""
    teacher = values.get("teacher") if isinstance(values, dict) else None
    if not isinstance(teacher, dict) or teacher.get("source"):
        return values
    given = {k: v for k, v in teacher.items() if v is not None}
    usual = {"prediction_type": "v_prediction", "schedule": {"name": "cosine"}}
    return {**values, "teacher": {**teacher, **usual, **given}}


class Collect(Section):
    """The trajectories."""

    source: ResultOfFile[str] = ""
    """Trajectories to import (the authors' LMDB, or what `dsno trajectories export` wrote); empty
    to make them."""
    count: Result[Count | None] = None
    slices: Result[Count] = 4
    """M: states stored per trajectory, at t = g(m / M), m = M - 1 .. 0."""
    grid: Result[SpacingName] = "quadratic"
    """g, the spacing of the stored times."""
    solver: Result[Solver] = "dpm++2m"
    steps: Result[Count] = 16
    spacing: Result[SpacingName] = "uniform"
    """How the solver's steps are spread."""
    batch_size: Rounding[Count] = 512
    """Trajectories solved at a time."""
    shard_size: Result[Count] = 4096
    """Trajectories in a file; `train.shuffle_shards` counts in it."""
    dtype: Result[StorageType] = "float16"
    precision: LaterResult[Arithmetic] = "exact"
    """Arithmetic of the network: `exact` is full float32 by deterministic kernels; `tf32` lets a
    GPU's tensor cores round the factors of products to 10 bits, `bf16` computes in bfloat16. Both
    take the fastest kernels found. The solver's states are float32 in any case."""
    compile: Rounding[bool] = False
    """Compile the network (`torch.compile`)."""
    guidance_scale: Result[Positive | tuple[Positive, Positive] | None] = None
    """Classifier-free guidance of the teacher (1 is the conditional model): a number is distilled
    into the student; a range is sampled from, and the scale becomes an input of the student."""
    prompts: ResultOfFile[str | tuple[str, ...]] = ()
    """For a text-conditional teacher: a text file with one prompt per line, or a list."""
    negative_prompt: Result[str] = ""
    """What guidance leads away from."""
    destination: Neutral[str] = ""
    """Folder or fsspec URL (s3://, gs://, hf://) of the trajectories; the run's own if empty."""
    cache_gb: Neutral[Positive | None] = None
    """Limit of the local copies of trajectories that lie behind a URL; null for none."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.source:
            _require(self, ("count",), "collect")
        if isinstance(self.guidance_scale, tuple) and not (
            self.guidance_scale[0] < self.guidance_scale[1]
        ):
            raise ValueError("`collect.guidance_scale` needs its range's smaller end first")
        return self

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """The range of scales to sample, if the scale is to be an input of the student."""
        return self.guidance_scale if isinstance(self.guidance_scale, tuple) else None


LIFT_IN_DETAIL = ("sites", "lifted_from", "shared_levels", "shared")
"""Keys of a student that say in detail what `student.lift` names."""


class Student(Section):
    """The operator."""

    EFFECT: ClassVar[Effect | None] = Effect.RESULT

    slices: Count = 4
    """Output times; must divide `collect.slices`."""
    modes: Count = 2
    """Temporal Fourier modes kept; without use where time is not mixed (`lift: readout`)."""
    output: OperatorOutput = "denoised"
    lift: Lift | None = None
    """How much of the network sees every slice: `all` of it, time mixed at the paper's sites;
    `core`, a U-Net below its highest resolution; `middle`, its lowest resolution's middle blocks
    and, in training, the decoder; `readout`, nothing but its last layer, of which every output time
    has a copy of its own: the network runs once, so `train.trajectory_every` = 1 costs no more.
    Null for the keys below, which say how time is mixed in detail; `all` if those are null too."""
    sites: tuple[str, ...] | None = None
    """Where time is mixed: `default` (the paper's sites), or names or patterns of submodules; empty
    for no temporal layers. `[default]` if null."""
    lifted_from: Whole | None = None
    """Level of a U-Net from which on time is mixed at the default sites: 0 (if null) for the
    highest resolution and so on. The decoder above it serves the last slice alone when sampling."""
    shared_levels: Whole | None = None
    """Levels whose encoder is computed once for all slices; none if null."""
    shared: tuple[str, ...] | None = None
    """Names or patterns of other submodules that are; they must run before time is mixed."""

    @model_validator(mode="after")
    def _is_lifted_in_one_way(self) -> Self:
        given = [f"`student.{name}`" for name in LIFT_IN_DETAIL if getattr(self, name) is not None]
        if self.lift is not None and given:
            raise ValueError(
                f"`student.lift` = {self.lift} cannot be combined with {' and '.join(given)}: both "
                "say how the network is lifted; set one or the other to null"
            )
        return self


class Train(Optimisation):
    """Training of the operator."""

    start_from: ResultOfFile[str] = ""
    """Folder of a trained student whose weights training starts from, its optimiser fresh; empty to
    start from the teacher's."""
    loss: Result[Loss] = "l1"
    vgg16: ResultOfFile[str] = ""
    """Safetensors file with VGG16's weights, for `lpips_vgg` (tools/convert_vgg16.py makes it)."""
    huber_delta: Result[Positive] = 0.03
    """Error at which pseudo-Huber turns from square to absolute."""
    shuffle_shards: Result[Count | None] = None
    """Shards among which training rows are shuffled at a time; null for all. Fewer suit a cache
    that cannot hold them all."""
    weight: Result[SliceWeight] = "sqrt_snr"
    weight_max: Result[Positive] = 1e4
    """Cap of the sqrt-SNR weight."""
    trajectory_every: Result[Count] = 1
    """Every how many steps the whole trajectory is compared; the other steps compare the sample
    alone and compute only what it depends on. `log_every` and `checkpoint_every` should be
    multiples of it, or recorded losses are of different mixtures."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        _require(self, ("steps", "batch_size", "learning_rate"), "train")
        if self.loss == "lpips_vgg" and not self.vgg16:
            raise ValueError(
                "`train.loss` = lpips_vgg needs `train.vgg16`, a safetensors file with VGG16's "
                "weights (tools/convert_vgg16.py makes it from torchvision's)"
            )
        return self


class Finish(Optimisation):
    """Distribution matching after the training of the operator, without data.

    `steps` are those of the second network; the student learns in every `fake_steps`-th of them.
    """

    learning_rate: Result[Positive | None] = None
    """Of the student, at its peak; about a twentieth of `train.learning_rate` suits."""
    fake_learning_rate: Result[Positive | None] = None
    """Of the second network; five times the student's if null."""
    fake_steps: Result[Count] = 1
    """Steps of the second network for one of the student."""
    fake_first: Result[Whole] = 50
    """Steps of the second network before the student's first, in which it gets to know its samples;
    without them the student is led astray at first."""
    betas: Result[tuple[Fraction, Fraction]] = (0.0, 0.99)
    """Of Adam: without momentum, as what is optimised changes from step to step."""
    ema_decay: Result[Fraction] = 0.99
    """Of the averaged weights, over the few steps that there are."""
    times: Result[tuple[Fraction, Fraction]] = (0.02, 0.98)
    """Range of the times whose noise is put on samples to judge them."""
    anchor: Result[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = 0.0
    """Weight of the mean absolute error to the stored trajectories' samples, which keeps the
    student near its teacher; with it noises are theirs, without it they are new."""
    checkpoint_every: Result[Count] = 50
    """Steps between checkpoints, at each of which samples are looked at; the best one is kept."""
    watch_samples: Result[Annotated[int, Field(ge=10)]] = 5000
    """Samples that are looked at, from noises of their own. 1,000 are too few: on digits their
    distances hid an improvement by a third."""
    watch_features: LaterResult[FeatureName | None] = None
    """Space in which they are looked at; if null, the last of those that `evaluate.features` has if
    empty. Which step is kept does not depend on `evaluate`."""
    watch_torchscript: LaterResultOfFile[str] = ""
    """File of the features `torchscript`, as `evaluate.torchscript`."""
    recall_drop: Result[Annotated[float, Field(gt=0, le=1)]] = 0.05
    """How far recall may fall below that before the finish in a model that is kept."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        _require(self, ("steps", "batch_size", "learning_rate"), "finish")
        if self.times[0] >= self.times[1]:
            raise ValueError("`finish.times` needs its smaller end first")
        assert self.steps is not None
        first = (self.fake_first // self.fake_steps + 1) * self.fake_steps
        if self.steps < first:
            raise ValueError(
                f"`finish.steps` = {self.steps} are over before the student's first step, which "
                f"is step {first} with `finish.fake_first` = {self.fake_first} and "
                f"`finish.fake_steps` = {self.fake_steps}; give more steps"
            )
        if (self.watch_features == "torchscript") != bool(self.watch_torchscript):
            raise ValueError(
                "`finish.watch_features` = torchscript and `finish.watch_torchscript`, the file of "
                "its detector, go together; give both or neither"
            )
        if self.compile == "reduce-overhead":
            raise ValueError(
                "`finish.compile` = reduce-overhead replays one network's graph before its last "
                "outputs are used up; set it to true"
            )
        return self

    @property
    def fake_rate(self) -> float:
        """Learning rate of the second network, in the student's."""
        assert self.learning_rate is not None
        given = self.fake_learning_rate
        return 5.0 if given is None else given / self.learning_rate


class Curve(Section):
    """Teacher samplers to measure."""

    EFFECT: ClassVar[Effect | None] = Effect.RESULT

    solver: Solver
    steps: Annotated[tuple[Count, ...], Field(min_length=1)]
    spacing: SpacingName = "uniform"


class Evaluate(Section):
    """What is measured, and against what."""

    EFFECT: ClassVar[Effect | None] = Effect.RESULT

    samples: Annotated[int, Field(ge=2)] = 5000
    batch_size: Rounding[Count] = 500
    precision: LaterResult[Arithmetic] = "exact"
    """Arithmetic of the student's and the teacher's network, as `collect.precision`. What samples
    are compared with, and features, are exact in any case."""
    compile: Rounding[bool] = False
    """Compile both networks (`torch.compile`)."""
    features: tuple[FeatureName, ...] = ()
    """Spaces distances are measured in; what the data allow if empty: pixels (thumbnails of larger
    images), and a classifier's features where there are labels. The last one gives the verdict."""
    inception: Neutral[str] = ""
    """File of the features `inception`, whose checksum is known; downloaded if empty."""
    torchscript: LaterResultOfFile[str] = ""
    """File of the features `torchscript`: a detector that takes bytes (n, 3, H, W)."""
    classifier_seed: int = 0
    """The classifier does not depend on the recipe's seed, so distances of all seeds compare."""
    curves: tuple[Curve, ...] = ()
    more_curves: Neutral[tuple[Curve, ...]] = ()
    """What `dsno evaluate --full` measures besides."""
    dial: LaterResult[tuple[Count, ...] | None] = None
    """Steps in which the student is measured besides one: the teacher's solver takes those after
    the first, from the student's trajectory. None if null; a student of one slice, which has no
    state for that, is measured in one step."""
    baseline_steps: Count = 16
    """The student is compared with DDIM of so many evaluations on a uniform grid."""
    reference_steps: Count = 32
    """Steps of dpm++2m in the solution that paired errors are measured against."""
    pictures: Annotated[int, Field(ge=1, le=256)] = 64
    timing_rounds: Count = 3


class Recipe(Section):
    """Everything a run needs."""

    name: Neutral[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]]
    title: Result[str] = ""
    """Of the report."""
    seed: Result[Annotated[int, Field(ge=0, lt=2**63)]] = 0
    data: Data | None = None
    """Without data the student of an existing teacher is compared with the teacher's samples."""
    teacher: Teacher
    collect: Collect
    student: Student = Student()
    train: Train
    finish: Finish | None = None
    """Nothing follows the training of the operator if null."""
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data is None and not self.teacher.source:
            raise ValueError(
                "A teacher that is trained here needs `data`; to use an existing one, give "
                "`teacher.source`"
            )
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
