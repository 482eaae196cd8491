"""What a saved pipeline's folder may hold, checked before a library imports what its files name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsno.backbones.safe_loading import (
    AUTOENCODERS,
    DIFFUSERS_STEM,
    TEXT_ENCODERS,
    TRANSFORMERS_STEM,
    best_variant,
    check_component,
    check_sample_shape,
    check_text_encoder,
    weight_variants,
)
from dsno.support.errors import InputError
from dsno.support.files import read_json, sha256, write_text
from dsno.support.scalars import as_whole

MAX_SLICES, MAX_SITES = 4_096, 4_096
"""Of a saved model: its tables grow with both, and no file may ask for any size."""
REMEDY = "train or download it again"
MODEL, VAE, TEXT_ENCODER, TOKENIZER = "model", "vae", "text_encoder", "tokenizer"
TEACHER = "teacher"
CARD, FACTS, PICTURE = "README.md", "card.json", "samples.png"
"""Of a model that is published: its page, what that was made of, and the picture in it."""
ORIGIN = "_name_or_path"
"""In a configuration, what it was loaded from: written by diffusers."""
COMPONENTS = (MODEL, VAE, TEXT_ENCODER, TOKENIZER, TEACHER)
_STEMS = {
    MODEL: DIFFUSERS_STEM,
    VAE: DIFFUSERS_STEM,
    TEXT_ENCODER: TRANSFORMERS_STEM,
    TEACHER: DIFFUSERS_STEM,
}


@dataclass(frozen=True)
class Names:
    """What a pipeline of ours is called in its model index.

    Attributes:
        pipeline: its class.
        module: where the classes of the model and the teacher live.
        model: the model's class.
        teacher: the teacher's class.
    """

    pipeline: str
    module: str
    model: str
    teacher: str


def check_folder(
    folder: Path, names: Names, given: Collection[str], variant: str | None = None
) -> None:
    """Check a pipeline's folder, but for the files of its model and teacher, which check theirs.

    Args:
        folder: with model_index.json.
        names: the classes it may name.
        given: components that the caller gives instead of the folder.
        variant: of the weights.

    Raises:
        InputError: for other classes than a pipeline of ours has, code beside them, or weights that
            are pickled or do not fit their configuration.
    """
    index = read_json(folder / "model_index.json", "model index", REMEDY)
    name = index.get("_class_name")
    if (name[-1:] if isinstance(name, list) else [name]) != [names.pipeline]:
        raise InputError(f"{folder} holds a {name!r:.60}, expected a {names.pipeline}; {REMEDY}.")
    # Some versions of the library take such files for the classes that the index names.
    for code in (f for place in ("", *COMPONENTS) for f in (folder / place).glob("*.py")):
        raise InputError(f"{code} is Python code, which a model's folder may not hold; remove it.")
    for component in COMPONENTS:
        entry = index.get(component)
        if component in given or entry in (None, [None, None]):
            continue
        if not _is_known(component, entry, names):
            raise InputError(
                f"The {component} in {folder} is a {entry!r:.60}, which is not supported; {REMEDY}."
            )
        found = _check_component(folder / component, component, variant)
        if found not in (entry[1], None):
            raise InputError(
                f"The {component} in {folder} is a {found!r:.60}, expected {entry[1]!r}; {REMEDY}."
            )


def weights_files(folder: Path) -> list[Path]:
    """The files of the model's weights in a pipeline's folder."""
    return sorted((folder / MODEL).glob("*.safetensors"))


def weights_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the model's weights in a pipeline's folder, by the files' names."""
    return {file.name: sha256(file) for file in weights_files(folder)}


def forget_origins(folder: Path) -> None:
    """Take the path that each part was loaded from out of a folder, which may be published."""
    names = ("model_index.json", "config.json", "*/config.json")
    for file in (file for name in names for file in sorted(folder.glob(name))):
        config = read_json(file, "configuration", REMEDY)
        if config.pop(ORIGIN, None) is not None:
            write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


def choose_variant(folder: Path, wanted: str | None) -> str | None:
    """The variant of the weights to ask the library for; it takes plain ones where that lacks.

    Args:
        folder: of a pipeline.
        wanted: by the user; if None, the first variant that a component has and no plain weights.

    Raises:
        InputError: if no component has the one wanted.
    """
    if wanted is None:
        found = (best_variant(folder / component, stem) for component, stem in _STEMS.items())
        return next((variant for variant in found if variant is not None), None)
    present = [
        v for component, stem in _STEMS.items() for v in weight_variants(folder / component, stem)
    ]
    require_variant(folder, wanted, present)
    return wanted


def require_variant(folder: Path, wanted: str, present: Collection[str | None]) -> None:
    """Refuse a variant that is not among those present.

    Raises:
        InputError: naming those that are.
    """
    if wanted not in present:
        names = sorted({"plain ones" if v is None else repr(v) for v in present}) or ["none"]
        raise InputError(
            f"{folder} has no weights of the variant {wanted!r}; there are {', '.join(names)}; "
            "give one of these, or leave variant out."
        )


def _is_known(component: str, entry: Any, names: Names) -> bool:
    """Whether a component's entry of the index, [library, class], is one that we write."""
    if not isinstance(entry, list) or not all(isinstance(k, str) for k in entry) or len(entry) != 2:
        return False
    library: str = entry[0]
    name: str = entry[1]
    if component == TOKENIZER:
        return library == "transformers" and name.endswith(("Tokenizer", "TokenizerFast"))
    known: dict[str, tuple[str, tuple[str, ...]]] = {
        MODEL: (names.module, (names.model,)),
        TEACHER: (names.module, (names.teacher,)),
        VAE: ("diffusers", AUTOENCODERS),
        TEXT_ENCODER: ("transformers", TEXT_ENCODERS),
    }
    home, classes = known[component]
    return library == home and name in classes


def _check_component(folder: Path, component: str, variant: str | None) -> str | None:
    """Check the files of one component; return its class, if they say it."""
    if component == VAE:
        return check_component(folder, AUTOENCODERS, "autoencoder", variant)
    if component == TEXT_ENCODER:
        return check_text_encoder(folder, variant)
    return None


def read_model_config(folder: Path) -> Mapping[str, Any]:
    """The configuration of a saved model.

    Raises:
        InputError: if its tables, which are not among its weights, would be too large.
    """
    config = read_config(folder, "model")
    slices, sites = as_whole(config.get("slices")), config.get("sites")
    if slices is None or not 1 <= slices <= MAX_SLICES:
        raise InputError(
            f"The model in {folder} has {config.get('slices')!r:.60} slices, and 1 to "
            f"{MAX_SLICES:,} are supported; {REMEDY}."
        )
    if not isinstance(sites, list) or len(sites) > MAX_SITES:
        raise InputError(
            f"The model in {folder} has no list of at most {MAX_SITES:,} sites; {REMEDY}."
        )
    return config


def read_config(folder: Path, what: str) -> Mapping[str, Any]:
    """The configuration of a saved model or teacher.

    Args:
        folder: of it.
        what: it is, for errors.

    Raises:
        InputError: if it does not say the shape of a sample, or too large a one.
    """
    config = read_json(folder / "config.json", f"configuration of the {what}", REMEDY)
    shape = config.get("sample_shape")
    sizes = [as_whole(size) for size in shape] if isinstance(shape, list) else [None]
    if None in sizes:
        raise InputError(f"The {what} in {folder} does not say its sample_shape; {REMEDY}.")
    check_sample_shape([size for size in sizes if size is not None], f"The {what} in {folder}")
    return config
