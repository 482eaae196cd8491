"""Trajectories of a run for others, and theirs for a run."""

from __future__ import annotations

import json
from pathlib import Path

from dsno.diffusion.schedules import NoiseSchedule
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.recipes import Recipe
from dsno.runs.build import prompt_texts, shape_text
from dsno.runs.locate import trajectories_of
from dsno.support.differences import changes
from dsno.support.errors import InputError
from dsno.support.files import fingerprint
from dsno.support.storage import StorageDir
from dsno.teachers.store import DESCRIPTION, Teacher, saved_schedule
from dsno.trajectories.collect import scales_at
from dsno.trajectories.exchange.about import read_index
from dsno.trajectories.exchange.export import Exported, export_trajectories
from dsno.trajectories.exchange.prompt_files import read_prompt_files
from dsno.trajectories.exchange.restore import restore
from dsno.trajectories.manifest import Manifest, load_manifest


def export_run(
    where: str,
    out: str,
    layout: str,
    *,
    slices: int | None = None,
    dtype: str | None = None,
    teacher: Path | None = None,
) -> Exported:
    """Write the trajectories that `where` names in a layout that others read.

    Args:
        where: folder of a run; or folder or URL of trajectories.
        out: folder or URL to write.
        layout: its name; this and the next two as `export_trajectories` takes them.
        slices: states a trajectory.
        dtype: of the states.
        teacher: folder of the teacher they were solved with; that of the run if None.

    Raises:
        InputError: if the teacher is not known, or as `export_trajectories`.
        WorkError: as `export_trajectories`.
    """
    storage, run = trajectories_of(where)
    load_manifest(storage)  # or there is nothing to ask the schedule of
    if teacher is None:
        if run is None or not (run / "teacher" / DESCRIPTION).is_file():
            raise InputError(
                f"{where} is not the folder of a run with its teacher, so the noise schedule is "
                "unknown; give that folder, or that of the teacher (--teacher)."
            )
        teacher = run / "teacher"
    schedule = saved_schedule(teacher)
    return export_trajectories(
        storage, StorageDir(out), layout, schedule=schedule, slices=slices, dtype=dtype
    )


def import_into(recipe: Recipe, teacher: Teacher, storage: StorageDir, tag: str) -> Manifest:
    """Write the exported trajectories that a recipe names as its own.

    Raises:
        InputError: if they are not such as the recipe's teacher and settings make, or as `restore`.
        WorkError: as `restore`.
    """
    source = StorageDir(recipe.collect.source)
    about, index = read_index(source)
    prompts = read_prompt_files(source, about, index.files)
    found = _settings(about.manifest, about.schedule)
    found["prompts"] = None if prompts is None else _short(list(prompts.texts))
    if differing := changes(found, _wanted(recipe, teacher)):
        raise InputError(
            f"The trajectories in {source} are not those of this recipe and teacher "
            f"({'; '.join(differing)}); change the recipe, or give others."
        )
    return restore(source, storage, tag=tag)


def _settings(manifest: Manifest, schedule: object) -> dict[str, object]:
    guidance = manifest.guidance_scale
    return {
        "collect.slices": len(manifest.times),
        "collect.dtype": manifest.dtype,
        "collect.guidance_scale": list(guidance) if isinstance(guidance, tuple) else guidance,
        "times": ", ".join(f"{time:.4g}" for time in manifest.times),
        "scales": ", ".join(f"{scale:.6g}" for scale in manifest.scales),
        "noise schedule": json.dumps(schedule),
        "shape of a sample": shape_text(manifest.sample_shape),
        "classes": manifest.num_classes,
    }


def _short(prompts: list[str]) -> str:
    return f"{len(prompts):,} with hash {fingerprint(prompts)}"


def _wanted(recipe: Recipe, teacher: Teacher) -> dict[str, object]:
    """What the recipe and the teacher have in the place of `_settings`."""
    spec, denoiser = recipe.collect, teacher.denoiser
    schedule: NoiseSchedule = denoiser.schedule
    times = grid_times(Spacing(spec.grid, schedule), spec.slices)
    guidance, prompts = spec.guidance_scale, prompt_texts(recipe, teacher)
    return {
        "collect.slices": spec.slices,
        "collect.dtype": spec.dtype,
        "collect.guidance_scale": list(guidance) if isinstance(guidance, tuple) else guidance,
        "times": ", ".join(f"{time:.4g}" for time in times.tolist()),
        "scales": ", ".join(f"{scale:.6g}" for scale in scales_at(denoiser, times)),
        "noise schedule": json.dumps(schedule.to_config()),
        "shape of a sample": shape_text(denoiser.sample_shape),
        "classes": teacher.num_classes,
        "prompts": None if prompts is None else _short(prompts),
    }
