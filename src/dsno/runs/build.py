"""What a recipe describes, as objects: its data, teacher, conditions and operator."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from dsno.backbones.registry import Backbone, backbone_of
from dsno.backbones.sites import inside, match_sites
from dsno.backbones.text_encoder import read_prompts
from dsno.data.dataset import Dataset
from dsno.data.load import read_data
from dsno.diffusion.conditions import Conditions
from dsno.diffusion.denoisers import Denoiser, DenoiserProtocol, Preconditioning, to_device
from dsno.diffusion.schedules import schedule_from_config
from dsno.evaluation.batchwise import Desk
from dsno.evaluation.reference import samples_of_teacher
from dsno.evaluation.samplers import Decode, Draws, as_is
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.recipes.schema import Recipe, Student, Train
from dsno.recipes.schema import Teacher as TeacherSection
from dsno.support import seeds
from dsno.support.console import say
from dsno.support.errors import InputError
from dsno.teachers.load import read_teacher
from dsno.teachers.options import TeacherOptions, frozen_fields
from dsno.teachers.store import Teacher, denoiser_of
from dsno.teachers.unet import build_unet
from dsno.training.losses import TrajectoryObjective, slice_weights
from dsno.training.lpips import load_vgg16
from dsno.trajectories.collect import scales_at
from dsno.trajectories.prompts import Prompts
from dsno.trajectories.shards import DTYPES


def load_recipe_data(recipe: Recipe) -> Dataset:
    """The recipe's real data.

    Raises:
        InputError: if it has none, or they cannot be read.
    """
    spec = recipe.data
    if spec is None:
        raise InputError("The recipe has no `data`; add it.")
    return read_data(spec)


def imported_teacher(spec: TeacherSection) -> Teacher:
    """The teacher in `teacher.source`.

    Raises:
        InputError: if it cannot be read.
    """
    schedule = None if spec.schedule is None else schedule_from_config(spec.schedule)
    options = TeacherOptions(
        spec.prediction_type,
        schedule,
        spec.sigma_data,
        spec.clip_sample,
        spec.null_class,
        spec.image_size,
        frozen_fields(spec.scheduler),
    )
    return read_teacher(spec.source, options)


def new_teacher(recipe: Recipe) -> Teacher:
    """The untrained teacher.

    Raises:
        InputError: if the recipe describes a network that cannot be built.
    """
    data, spec = load_recipe_data(recipe), recipe.teacher
    if spec.conditional and data.num_classes is None:
        raise InputError(
            f"`teacher.conditional` needs labels, and {data.name} has none; set it to false."
        )
    classes = data.num_classes if spec.conditional else None
    null = classes if classes is not None and spec.label_dropout else None
    assert spec.network is not None
    assert spec.schedule is not None
    assert spec.prediction_type is not None
    both = spec.prediction_type == "sample_and_epsilon"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.torch_seed(recipe.seed, seeds.WEIGHTS, 0))
        network = build_unet(
            data.sample_shape,
            num_classes=classes if classes is None or null is None else classes + 1,
            out_channels=2 * data.sample_shape[0] if both else None,
            **spec.network.model_dump(),
        )
    preconditioning = Preconditioning(
        schedule_from_config(spec.schedule), spec.prediction_type, spec.sigma_data or 1.0
    )
    denoiser = denoiser_of(
        network,
        preconditioning,
        data.sample_shape,
        clip_sample=1.0 if spec.clip_sample else None,
    )
    return Teacher(denoiser, classes, null)


def guided(recipe: Recipe, teacher: Teacher) -> DenoiserProtocol:
    """The teacher as trajectories are made with it: with guidance if the recipe asks for it."""
    spec = recipe.collect
    if spec.guidance_scale is None:
        return teacher.denoiser
    fixed = None if spec.guidance_range is not None else spec.guidance_scale
    assert not isinstance(fixed, tuple)
    return teacher.guided(fixed, spec.negative_prompt)


def prompt_texts(recipe: Recipe, teacher: Teacher) -> list[str] | None:
    """The recipe's prompts; None for a teacher without text.

    Raises:
        InputError: for a text teacher without prompts, or prompts for another.
    """
    spec = recipe.collect
    if teacher.text is None:
        if spec.prompts:
            raise InputError("This teacher is not conditioned on text; remove `collect.prompts`.")
        return None
    if not spec.prompts:
        raise InputError(
            "This teacher is conditioned on text: give `collect.prompts`, a file with one prompt "
            "per line."
        )
    if isinstance(spec.prompts, str):
        return read_prompts(Path(spec.prompts))
    return list(spec.prompts)


def embedded_prompts(recipe: Recipe, teacher: Teacher) -> Prompts | None:
    """The recipe's prompts with their embeddings, rounded to storage precision.

    Raises:
        InputError: as `prompt_texts`.
    """
    texts = prompt_texts(recipe, teacher)
    if texts is None or teacher.text is None:
        return None
    say(f"embedding {len(texts):,} prompts.")
    embeddings = teacher.text.encode(texts).to(DTYPES[recipe.collect.dtype])
    return Prompts(tuple(texts), embeddings)


def class_frequencies(recipe: Recipe, teacher: Teacher) -> list[float] | None:
    """Share of each class to draw labels from: that of the training data, or even if unknown."""
    if teacher.num_classes is None:
        return None
    if recipe.teacher.source:
        return [1 / teacher.num_classes] * teacher.num_classes
    return load_recipe_data(recipe).label_frequencies


def conditions_of(recipe: Recipe, teacher: Teacher, prompts: Prompts | None) -> Conditions:
    """How the condition of every trajectory and sample is drawn."""
    return Conditions(
        class_frequencies(recipe, teacher),
        recipe.collect.guidance_range,
        None if prompts is None else prompts.embeddings,
    )


def decoder(teacher: Teacher) -> Decode:
    """From the teacher's states to images."""
    return as_is if teacher.latents is None else teacher.latents.decode


def real_data(recipe: Recipe, teacher: Teacher, draws: Draws, desk: Desk | None = None) -> Dataset:
    """What samples are compared with: the recipe's data or, without, samples of the teacher.

    Raises:
        InputError: if the data have another shape than the samples.
    """
    spec, decode = recipe.evaluate, decoder(teacher)
    if recipe.data is None:
        denoiser = to_device(guided(recipe, teacher), draws.device)
        return samples_of_teacher(
            denoiser, draws, spec.samples, steps=spec.reference_steps, decode=decode, desk=desk
        )
    data = load_recipe_data(recipe)
    with torch.no_grad():
        made = tuple(decode(torch.zeros(1, *teacher.denoiser.sample_shape)).shape[1:])
    if data.sample_shape != made:
        real = shape_text(data.sample_shape)
        raise InputError(
            f"The teacher makes samples of {shape_text(made)}, but the data are {real}; set "
            "data.size and data.channels, or leave `data` out."
        )
    return data


def new_operator(recipe: Recipe, teacher: Teacher) -> DSNO:
    """The untrained operator.

    Raises:
        InputError: as `lift_config`, or if a submodule the recipe names is not in the network.
    """
    config = lift_config(recipe, teacher.denoiser.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.torch_seed(recipe.seed, seeds.WEIGHTS, 1))
        operator = DSNO.from_teacher(
            teacher.denoiser,
            config,
            spacing=recipe.collect.grid,
            output=recipe.student.output,
            condition=teacher.example_condition(),
        )
    return operator


def trajectory_objective(spec: Train, operator: DSNO, denoiser: Denoiser) -> TrajectoryObjective:
    """The operator with the loss that it is trained by.

    Raises:
        InputError: if VGG16's weights are wanted and cannot be read.
    """
    times = operator.times
    return TrajectoryObjective(
        operator,
        torch.tensor(scales_at(denoiser, times)),
        slice_weights(
            spec.weight,
            denoiser.schedule,
            times,
            weight_max=spec.weight_max,
            sigma_data=denoiser.sigma_data,
        ),
        distance=spec.loss,
        delta=spec.huber_delta,
        perceptual=load_vgg16(Path(spec.vgg16)) if spec.loss == "lpips_vgg" else None,
    )


def lift_config(recipe: Recipe, network: nn.Module) -> LiftConfig:
    """How the recipe lifts a teacher's network, with levels and the lift's name resolved.

    Raises:
        InputError: for a lift that needs levels the network does not have, or a pattern that
            matches nothing.
    """
    kind = backbone_of(network)
    if recipe.student.lift == "readout":
        return _readout_config(recipe, kind, network)
    spec = _in_detail(recipe.student, kind, network)
    lifted_from, shared_levels = spec.lifted_from or 0, spec.shared_levels or 0
    levels = kind.levels(network)
    for key, asked in ("lifted_from", lifted_from), ("shared_levels", shared_levels):
        if asked > len(levels):
            raise InputError(
                f"student.{key} = {asked}, but the {kind.name} has {len(levels)} levels to choose; "
                "for other networks name submodules in student.sites and student.shared."
            )
    shared = [name for level in levels[:shared_levels] for name in level.encoder]
    sites = ["default"] if spec.sites is None else list(spec.sites)
    if "default" in sites:
        sites.remove("default")
        above = [n for level in levels[:lifted_from] for n in level.encoder + level.decoder]
        below = [site for site in kind.sites(network) if not inside(site, above)]
        sites = below + (match_sites(network, sites) if sites else [])
    return LiftConfig(
        sites,
        slices=spec.slices,
        modes=spec.modes,
        channel_dim=kind.channel_dim,
        shared=[*shared, *(spec.shared or ())],
        guidance=recipe.collect.guidance_range is not None,
    )


def _readout_config(recipe: Recipe, kind: Backbone, network: nn.Module) -> LiftConfig:
    """`student.lift` = readout.

    Raises:
        InputError: if the network's last layer is not known.
    """
    readout = kind.readout(network)
    if readout is None:
        raise InputError(
            f"student.lift = readout needs the name of the last layer of a {kind.name}, which is "
            "not known; give it to `register` as readout, or choose another lift."
        )
    guidance = recipe.collect.guidance_range is not None
    return LiftConfig(
        kind.sites(network) if guidance else (),
        slices=recipe.student.slices,
        channel_dim=kind.channel_dim,
        guidance=guidance,
        readout=readout,
    )


def _in_detail(spec: Student, kind: Backbone, network: nn.Module) -> Student:
    """`student.lift` as the detailed keys it stands for.

    Raises:
        InputError: if the network does not have the levels or the middle it needs.
    """
    detail: dict[str, object]
    middle = kind.middle(network)
    if spec.lift in (None, "all"):
        detail = {}
    elif spec.lift == "core" and kind.levels(network):
        detail = {"lifted_from": 1, "shared_levels": 1}
    elif spec.lift == "middle" and middle:
        detail = {"sites": (middle,), "shared_levels": len(kind.levels(network))}
    else:
        lacks = "several resolutions" if spec.lift == "core" else "a middle block"
        raise InputError(
            f"student.lift = {spec.lift} needs a network with {lacks}, which this {kind.name} is "
            "not known to have; set it to all, or to null and name submodules in student.sites and "
            "student.shared."
        )
    return spec.model_copy(update=detail)


def load_start(operator: DSNO, folder: str) -> None:
    """Load the weights of a trained student into a new one; nothing without a folder.

    Args:
        operator: changed in place.
        folder: `train.start_from`; empty for none.

    Raises:
        InputError: if there is no student, or one of another architecture or another kind of
            teacher.
    """
    if not folder:
        return
    if not (Path(folder) / "model_index.json").is_file():
        raise InputError(
            f"There is no trained student in {folder} (train.start_from); give the `student` "
            "folder of a run."
        )
    from dsno.pipeline import DSNOPipeline  # diffusers: seconds

    start: DSNO = DSNOPipeline.from_pretrained(folder).model.operator
    if start.preconditioning.to_config() != operator.preconditioning.to_config():
        raise InputError(
            f"The student in {folder} (train.start_from) has a teacher of another schedule or "
            "prediction type; start from a student of this recipe's kind of teacher."
        )
    found, expected = start.state_dict(), operator.state_dict()
    for name in sorted(found.keys() | expected.keys()):
        shapes = [tuple(w[name].shape) if name in w else "nothing" for w in (expected, found)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"The student in {folder} (train.start_from) does not fit: expected {shapes[0]} "
                f"for {name}, found {shapes[1]}; give it this recipe's network, student.modes and "
                "time-mixing sites."
            )
    operator.load_state_dict(found)


def check_buildable(recipe: Recipe, finished: Collection[str] = ()) -> None:
    """Build everything a recipe describes, in memory, so that nothing is begun in vain.

    Args:
        recipe: what to build.
        finished: stages that are; the files they read (`train.vgg16`, `train.start_from`,
            `collect.prompts`) may be gone.

    Raises:
        InputError: if anything in it cannot be built, or a file it names is missing.
    """
    is_trained = "train" in finished
    has_vgg16 = is_trained or Path(recipe.train.vgg16).is_file()
    if recipe.train.loss == "lpips_vgg" and not has_vgg16:
        raise InputError(
            f"There is no file {recipe.train.vgg16} (train.vgg16); tools/convert_vgg16.py makes it "
            "from torchvision's weights."
        )
    teacher = imported_teacher(recipe.teacher) if recipe.teacher.source else new_teacher(recipe)
    guided(recipe, teacher)
    if "collect" not in finished:
        prompt_texts(recipe, teacher)
    operator = new_operator(recipe, teacher)
    if not is_trained:
        load_start(operator, recipe.train.start_from)


def summary(teacher: Teacher) -> str:
    """A teacher in a few words, for people."""
    denoiser = teacher.denoiser
    words = [
        f"a {type(denoiser.network).__name__} of {count(denoiser.network):,} parameters",
        f"predicting {denoiser.preconditioning.prediction_type}",
        f"on the {denoiser.schedule.name} schedule",
        f"samples {shape_text(denoiser.sample_shape)}",
    ]
    if teacher.latents is not None:
        words.append(f"latent ({type(teacher.latents.vae).__name__})")
    if teacher.num_classes is not None:
        words.append(f"{teacher.num_classes} classes")
    if teacher.text is not None:
        words.append("conditioned on text")
    return ", ".join(words)


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as 3x32x32."""
    return "x".join(str(n) for n in shape)
