"""The trained operator in diffusers' format: a model and a pipeline that samples in one call.

The module path and the class names stand inside saved folders: they are API.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin  # noqa: F401 - see the note at the end
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from dsno.backbones import registry
from dsno.backbones.autoencoder import Latents
from dsno.backbones.text_encoder import TextEncoder
from dsno.cards.publish import publish
from dsno.diffusion.conditions import CLASS_LABELS, EMBEDDINGS, GUIDANCE_SCALE, Condition
from dsno.diffusion.denoisers import Denoiser, DenoiserProtocol, Preconditioning
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import NoiseSchedule
from dsno.operator.batch_plan import BatchPlan
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig, Lifted
from dsno.operator.readout import Readout
from dsno.sampling import arguments
from dsno.sampling.callbacks import LATENTS, StepEnd, check_callback, on_step
from dsno.sampling.dial import check_teacher, go_on, start_of
from dsno.sampling.elsewhere import check_others
from dsno.sampling.folder import (
    COMPONENTS,
    Names,
    check_folder,
    choose_variant,
    forget_origins,
    read_model_config,
)
from dsno.sampling.loading import (
    check_options,
    loading,
    local_folder,
    require_folder,
    require_safetensors,
)
from dsno.sampling.outputs import OUTPUT_TYPES, DSNOPipelineOutput, convert
from dsno.sampling.saved_model import SavedModel
from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError, one_of
from dsno.support.hub import Upload
from dsno.teachers.store import denoiser_of


class DSNOModel(SavedModel):
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
        readout: name of the layer that has a head for each trained time; empty without, see
            `dsno.operator.lift.LiftConfig`.
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
        readout: str = "",
    ) -> None:
        super().__init__()
        guidance_scale = arguments.trained_guidance(guidance_scale)
        self.register_to_config(guidance_scale=guidance_scale)  # as plain numbers
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
                readout=readout,
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
                guidance_scale=arguments.trained_guidance(guidance_scale),
                is_textual=is_textual,
                parts=lifted.plan.to_config(),
                readout=lifted.config.readout,
            )
        model.operator = operator
        return model

    @classmethod
    def _read_config(cls, folder: Path) -> Mapping[str, Any]:
        return read_model_config(folder)

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


class DSNOTeacher(SavedModel):
    """The teacher of an operator, with its guidance: `teacher(x, t, condition) -> x_0`.

    It is what solvers take (`DenoiserProtocol`), saved by `save_pretrained` like the model.

    Args:
        backbone: name of the network's class, see `dsno.backbones.registry`.
        backbone_config: its configuration.
        preconditioning: `Preconditioning.to_config()`.
        sample_shape: shape of one sample.
        clip_sample: bound of the denoised estimate, see `Denoiser`.
        dynamic_threshold: quantile and largest value, see `Denoiser`.
        null_class: of guidance by labels, the label that means no class; else None.
        null_embeddings: of guidance by text, the shape (L, D) of the embeddings of no prompt, which
            are among the weights; else None.
        guidance_scale: of the guidance; None where each sample has its own, or there is none.
    """

    what: ClassVar[str] = "teacher"

    @register_to_config
    def __init__(
        self,
        backbone: str,
        backbone_config: Mapping[str, Any],
        preconditioning: Mapping[str, Any],
        sample_shape: Sequence[int],
        clip_sample: float | None = None,
        dynamic_threshold: Sequence[float] | None = None,
        null_class: int | None = None,
        null_embeddings: Sequence[int] | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        threshold = None
        if dynamic_threshold is not None:
            quantile, largest = dynamic_threshold
            threshold = quantile, largest
        network = registry.backbone(backbone).build(backbone_config)
        with torch.device("cpu"):  # a schedule needs numbers, as in the model
            self.denoiser = denoiser_of(
                network,
                Preconditioning.from_config(preconditioning),
                sample_shape,
                clip_sample=clip_sample,
                dynamic_threshold=threshold,
            )
        null = None if null_embeddings is None else torch.zeros(tuple(null_embeddings))
        self.register_buffer("null", null)

    @classmethod
    def from_denoiser(cls, denoiser: DenoiserProtocol) -> DSNOTeacher:
        """Wrap a teacher whose network is of a known class, with or without guidance.

        Raises:
            InputError: if it has no such network.
        """
        guided = denoiser if isinstance(denoiser, GuidedDenoiser) else None
        inner = denoiser if guided is None else guided.inner
        if not isinstance(inner, Denoiser):
            raise InputError(f"A {type(inner).__name__} has no network to be saved.")
        kind = registry.backbone_of(inner.network)
        nothing = {} if guided is None else guided.null_condition
        label, embeddings = nothing.get(CLASS_LABELS), nothing.get(EMBEDDINGS)
        with torch.device("meta"):  # its weights are replaced just below
            teacher: DSNOTeacher = cls(
                backbone=kind.name,
                backbone_config=kind.config(inner.network),
                preconditioning=inner.preconditioning.to_config(),
                sample_shape=list(inner.sample_shape),
                clip_sample=inner.clip_sample,
                dynamic_threshold=inner.dynamic_threshold and list(inner.dynamic_threshold),
                null_class=None if label is None else int(label),
                null_embeddings=None if embeddings is None else list(embeddings.shape),
                guidance_scale=None if guided is None else guided.scale,
            )
        teacher.denoiser, teacher.null = inner, embeddings
        teacher.eval()
        return teacher

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule it was trained with."""
        return self.denoiser.schedule

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.denoiser.sample_shape

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data."""
        return self.denoiser.sigma_data

    @property
    def evaluations(self) -> int:
        """Network evaluations of a call: 2 with guidance."""
        return GuidedDenoiser.evaluations if self._is_guided else 1

    @property
    def _is_guided(self) -> bool:
        return self.config.null_class is not None or self.null is not None

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """D(x, t), guided; `t` is a scalar or (batch,).

        Where each sample has its own guidance scale, that is among the conditions.
        """
        if not self._is_guided:
            plain: Tensor = self.denoiser(x, t, condition)
            return plain
        null = {EMBEDDINGS: self.null}
        if self.null is None:
            label = x.new_full((), self.config.null_class, dtype=torch.int64)
            null = {CLASS_LABELS: label}
        return GuidedDenoiser(self.denoiser, self.config.guidance_scale, null)(x, t, condition)


def _config_of(network: nn.Module, kind: registry.Backbone) -> dict[str, Any]:
    """The configuration that builds this very network: a student's last layer may be narrower."""
    config = kind.config(network)
    last: Any = getattr(network, "conv_out", None)
    if "out_channels" in config and isinstance(last, nn.Conv2d | Readout):
        config["out_channels"] = last.out_channels
    return config


class DSNOPipeline(DiffusionPipeline):
    """Sample a trained operator: noise in, samples out, one network evaluation or a few.

    Args:
        model: the operator.
        vae: the autoencoder of a latent model.
        text_encoder: of a text-conditional model.
        tokenizer: of a text-conditional model.
        teacher: of the model, for more than one step.

    Example:
        >>> pipeline = DSNOPipeline.from_pretrained("runs/digits/student")  # doctest: +SKIP
        >>> images = pipeline(batch_size=16).images  # doctest: +SKIP
    """

    _optional_components: ClassVar[list[str]] = ["vae", "text_encoder", "tokenizer", "teacher"]
    _callback_tensor_inputs: ClassVar[list[str]] = [LATENTS]
    model_cpu_offload_seq = "text_encoder->model->teacher->vae"

    def __init__(
        self,
        model: DSNOModel,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        teacher: DSNOTeacher | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            model=model, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, teacher=teacher
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> DSNOPipeline:
        """Load a folder written by `save_pretrained` (or by `dsno train`), or a Hub id.

        Args:
            pretrained_model_name_or_path: local folder, or `owner/name` on the Hub, which is
                downloaded first; no code of it is run.
            kwargs: `dtype` (or `torch_dtype`); `variant`, without which the plain weights are taken
                or what there is; components to be used instead of the folder's, or None
                (`teacher=None`); and of a download `revision`, `token`, `cache_dir`,
                `local_files_only` and `force_download`.

        Raises:
            InputError: if it is not such a folder, a file of it is damaged, or an option is not
                known.
        """
        check_options(kwargs, COMPONENTS)
        folder = pretrained_model_name_or_path
        path = local_folder(folder, kwargs)
        if not (path / "model_index.json").is_file():
            raise InputError(
                f"{folder} is not a trained model (no model_index.json); give the folder that "
                "`dsno train` wrote, such as runs/digits/student."
            )
        kwargs.setdefault("low_cpu_mem_usage", False)  # as for the model itself
        kwargs["variant"] = choose_variant(path, kwargs.get("variant"))
        names = Names(cls.__name__, DSNOModel.__module__, DSNOModel.__name__, DSNOTeacher.__name__)
        with loading(folder):
            check_folder(path, names, given=kwargs, variant=kwargs["variant"])
            pipeline = super().from_pretrained(path, use_safetensors=True, **kwargs)
        if not isinstance(pipeline, cls):
            raise InputError(f"{folder} holds a {type(pipeline).__name__}, not a {cls.__name__}.")
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        license: str | None = None,
        card: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save every component, and the model's card: README.md, which is its page on the Hub.

        The card says what is known of the model: of one in a run's folder that was evaluated, how
        it was made, what was measured by which protocol, and its samples. A README.md in the
        folder, or in that of the model, that is not of this package's making is kept.

        Args:
            save_directory: folder to write.
            safe_serialization: True; other formats would not be loaded again.
            variant: part of the names of the weights' files, such as "fp16".
            max_shard_size: of one file of weights; more are written beyond it.
            push_to_hub: upload the folder, too; its repository is called like it, or `repo_id`.
            license: of the weights, by the Hub's names ("cc-by-4.0"), for the card.
            card: whether to write it.
            kwargs: of the upload: `repo_id`, `commit_message`, `private`, `create_pr`, `token`.

        Raises:
            InputError: for pickled weights, unknown arguments or a file in its place; if what is
                known of the model is damaged, before anything is written; or if it cannot be
                uploaded.
        """
        require_safetensors(safe_serialization, kwargs)
        require_folder(save_directory)
        folder, hub = Path(save_directory), None
        for name in kwargs:
            if name not in ("repo_id", "commit_message", "private", "token", "create_pr"):
                raise InputError(f"Unknown argument of save_pretrained: {name!r:.60}; omit it.")
            if not push_to_hub:
                raise InputError(f"{name} is of an upload: give push_to_hub=True too.")
        if push_to_hub:
            hub = Upload(kwargs.pop("repo_id", folder.absolute().name), **kwargs)
        self._save(folder, hub, variant, max_shard_size, license=license, card=card)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        license: str | None = None,
    ) -> Any:
        """Upload the model with its card to the Hub; arguments: `save_pretrained`.

        A card of the repository that is not of this package's making is kept.

        Returns:
            The library's `CommitInfo`.

        Raises:
            InputError: as `save_pretrained`, or for a `subfolder`.
        """
        require_safetensors(safe_serialization, {})
        if subfolder:
            raise InputError("A model is loaded from the top of a repository: leave out subfolder.")
        hub = Upload(repo_id, commit_message, private, token, create_pr)
        with tempfile.TemporaryDirectory() as folder:
            return self._save(Path(folder), hub, variant, None, license=license, card=True)

    def _save(
        self,
        folder: Path,
        hub: Upload | None,
        variant: str | None,
        max_shard_size: int | str | None,
        *,
        license: str | None,
        card: bool,
    ) -> Any:
        """Write the folder, and upload it; return the library's `CommitInfo` of that."""

        def write() -> None:
            super(DSNOPipeline, self).save_pretrained(
                folder, variant=variant, max_shard_size=max_shard_size
            )
            forget_origins(folder)

        if hub is None and not card:
            write()
            return None
        return publish(self, write, folder, hub, license=license, card=card)

    @property
    def decode(self) -> Callable[[Tensor], Tensor]:
        """From the model's states to images: the autoencoder, or nothing to do."""
        if self.vae is None:
            return lambda states: states
        return functools.partial(Latents(self.vae).decode, device=self._execution_device)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one decoded sample."""
        states = torch.zeros(1, *self.model.operator.sample_shape, device=self._execution_device)
        return tuple(self.decode(states).shape[1:])

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
        encoder = TextEncoder(self.tokenizer, self.text_encoder)
        return encoder.encode(prompts, device=self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | Sequence[int] | np.ndarray | Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: Tensor | None = None,
        output_type: str = "pil",
        return_trajectory: bool = False,
        times: Sequence[float] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        guidance_scale: float | Sequence[float] | Tensor | None = None,
        *,
        latents: Tensor | None = None,
        num_images_per_prompt: int | None = 1,
        num_inference_steps: int | None = 1,
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        **others: Any,
    ) -> DSNOPipelineOutput | tuple[Any, ...]:
        """Make samples.

        Args:
            batch_size: how many; by default as many as there are labels, prompts or noises, or 1.
            class_labels: one class for all, alone or in a list, or one per sample; drawn with the
                frequencies of the training data if the model is conditional and none are given.
            generator: of the noise (and the labels), on any device; or one per sample, each of
                which then gives what it would give alone.
            noise: unit normal (batch, *shape), instead of drawing it.
            output_type: `pil`; `np` (batch, H, W, C) or `pt` (batch, C, H, W), both in [0, 1];
                `raw`, what the model gives, about [-1, 1]; or `latent`, that before decoding.
            return_trajectory: also return the states x(t), at `times` or at the trained times.
            times: times in [0, 1] for the trajectory, in any number. With the lifts `readout` and
                `all` states between trained times are as good as at them; with `middle` and `core`
                they are uneven (results/ablations.md).
            prompt: of a text-conditional model: one for all, alone or in a list, or one per sample.
            prompt_embeds: their embeddings (batch, L, D), instead.
            guidance_scale: of a model trained at a range of scales: one for all, alone or in a
                list, or one per sample; the middle of the range if none is given.
            latents: another name for `noise`.
            num_images_per_prompt: samples of each prompt, next to each other.
            num_inference_steps: 1, the operator's one evaluation; each further step is one of the
                teacher's solver from a state of the operator's trajectory, see
                `dsno.sampling.dial`. It takes a model that was saved with its teacher.
            return_dict: return the output's object; else a tuple of the images, and of the
                trajectory and its times if they were asked for.
            callback_on_step_end: of more than one step, called after each as
                `callback(pipeline, index, t, {"latents": x})`, with t in [0, 1] the time at which
                a network was evaluated (1 for the operator) and x the state (batch, *shape) at the
                step's end. Another tensor in the dictionary that it returns replaces x.
            callback_on_step_end_tensor_inputs: what it sees: `["latents"]`.
            others: `height` and `width`, if they are the model's own; what else diffusers'
                pipelines take is refused with what to do instead.

        Raises:
            InputError: for a batch size below 1, labels out of range or given to an unconditional
                model, no prompt for a text-conditional one, a guidance scale where it is no input,
                sizes that disagree, times without `return_trajectory`, an unknown output type or
                argument, a callback of one step, or more than one step with `return_trajectory` or
                without a teacher.
        """
        config, operator = self.model.config, self.model.operator
        one_of(output_type, OUTPUT_TYPES, "output type")
        if others:
            known = [name for name in inspect.signature(self.__call__).parameters]
            check_others(others, lambda: self.image_shape, known)
        steps = arguments.check_steps(num_inference_steps)
        if steps > 1:
            if return_trajectory:
                raise InputError(
                    "The trajectory is the operator's, of one step: leave out return_trajectory or "
                    "num_inference_steps."
                )
            check_teacher(self.teacher, operator.preconditioning, operator.sample_shape)
        callback = check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, steps)
        if times is not None and not return_trajectory:
            raise InputError("Times are of the trajectory: give return_trajectory=True too.")
        if noise is not None and latents is not None:
            raise InputError("Latents are another name for the noise: give one of the two.")
        noise = latents if noise is None else noise
        generators = arguments.generator_list(generator)
        prompts = arguments.prompt_list(prompt)
        repeats = arguments.check_repeats(num_images_per_prompt, is_textual=config.is_textual)
        rows = arguments.check_prompts(prompts, prompt_embeds, is_textual=config.is_textual)
        made = None if rows is None else len(rows) * repeats
        count = arguments.count_samples(
            batch_size,
            None if made == 1 else made,
            {"noise": noise, "generator": generators if len(generators) > 1 else None},
            {"class_labels": class_labels, "guidance_scale": guidance_scale},
        )
        device = self._execution_device
        if noise is None:
            noise = arguments.draw_noise(count, operator.sample_shape, generators, device)
        condition = {
            CLASS_LABELS: arguments.labels(
                class_labels, count, config.class_frequencies, generators
            ),
            EMBEDDINGS: None if rows is None else self._embeddings(rows, count, repeats),
            GUIDANCE_SCALE: arguments.check_guidance(guidance_scale, count, config.guidance_scale),
        }
        asked = None if times is None else arguments.check_times(times)
        given = {k: v.to(device) for k, v in condition.items() if v is not None}
        noise = torch.as_tensor(noise).to(device=device, dtype=self.model.dtype)
        nfe = 1
        if steps == 1:
            states = self._states(noise, given, asked, last_only=not return_trajectory)
        else:
            start = start_of(operator.times, operator.preconditioning)
            states = self.model(noise, times=start.times, **given)
            after = on_step(self, callback)
            solution = go_on(self.teacher, start, states, steps - 1, given or None, after)
            states, nfe = solution.states.to(states.dtype), 1 + solution.nfe
        shown = operator.times if asked is None else asked
        samples = states[:, -1]
        images = samples if output_type == "latent" else convert(self.decode(samples), output_type)
        self.maybe_free_model_hooks()
        trajectory = states[:, : len(shown)] if return_trajectory else None
        if not return_dict:
            return (images, trajectory, shown) if return_trajectory else (images,)
        return DSNOPipelineOutput(
            images,
            trajectory,
            shown if return_trajectory else None,
            condition[CLASS_LABELS],
            None if self.vae is None else samples,
            nfe,
        )

    def _embeddings(self, rows: Sequence[str] | Tensor, count: int, repeats: int) -> Tensor:
        """Embeddings (count, L, D) of the samples' prompts."""
        encoded = rows if isinstance(rows, Tensor) else self.embed(rows)
        return encoded.to(self.model.dtype).repeat_interleave(repeats, 0).expand(count, -1, -1)

    def _states(
        self,
        noise: Tensor,
        condition: Mapping[str, Tensor],
        times: Tensor | None,
        *,
        last_only: bool,
    ) -> Tensor:
        """States of one evaluation, at the trained times or those given; the last is the sample."""
        every = None if times is None else torch.cat([times, times.new_zeros(1)])
        states: Tensor = self.model(noise, times=every, last_only=last_only, **condition)
        return states.clone()  # a CUDA graph puts the states of the next call where these are


# `DiffusionPipeline.from_pretrained` finds a pipeline's class among the library's own names, and
# has no other place for one that is not code inside the folder; the classes of its components it
# takes for models only where a `ModelMixin` stands in their module.
diffusers.DSNOPipeline = DSNOPipeline


def save_pipeline(
    model: DSNOModel, folder: Path, latents: Latents | None = None, text: TextEncoder | None = None
) -> None:
    """Write the pipeline layout: model_index.json, model/ and what decodes and encodes for it.

    There is no card yet: the model has not been measured.
    """
    pipeline = DSNOPipeline(
        model,
        vae=None if latents is None else latents.vae,
        text_encoder=None if text is None else text.encoder,
        tokenizer=None if text is None else text.tokenizer,
    )
    with quiet_libraries():
        pipeline.save_pretrained(folder, card=False)
