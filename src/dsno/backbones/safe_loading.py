"""What a model's folder may make this package build: known classes, no larger than its weights.

A configuration is a small text file that can ask for anything. Before a library builds what it
says, it is built here on the `meta` device, where tensors take no memory, and compared with the
headers of the weights beside it.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules import module as registration

from dsno.support.console import quiet_libraries
from dsno.support.errors import InputError
from dsno.support.files import read_json, require_regular

DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
"""First parts of the names of weights, as each library writes them."""
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
AUTOENCODERS = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
TEXT_ENCODERS = ("CLIPTextModel", "T5EncoderModel")
REMEDY = "give the folder of a diffusers model or pipeline"

MAX_ELEMENTS = 2**24
"""Of one sample, and of what a network holds beside its weights (tables of positions)."""
# A network may have more weights than the file, for an error that names those that are missing;
# beyond this only counting them takes long.
_SPARE_TENSORS = 5_000
# Keys with which a library replaces parts of the network by code or files from elsewhere.
_REPLACING = frozenset(
    {"quantization_config", "attn_implementation", "_attn_implementation", "experts_implementation"}
)
MAX_QUOTED = 300
"""Characters of a library's error that are passed on."""
Shapes = Mapping[str, tuple[int, ...]]


def first_line(error: Exception) -> str:
    """The first line of an error's text, in printable characters, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[0] if len(lines[0]) <= MAX_QUOTED else lines[0][:MAX_QUOTED] + "..."
    return "".join(c if c.isprintable() else "?" for c in line).rstrip(".")


def check_sample_shape(shape: Sequence[int], source: str) -> None:
    """Refuse samples that no file's few digits should make anybody allocate.

    Raises:
        InputError: for a size below 1, or more than `MAX_ELEMENTS` numbers in a sample.
    """
    left = MAX_ELEMENTS
    for size in shape:
        left = left // size if size > 0 else 0
    if not shape or left < 1:
        raise InputError(
            f"{source} has samples of shape {tuple(shape)}, and sizes of at least 1 with at most "
            f"{MAX_ELEMENTS:,} numbers in all are supported; correct it."
        )


def stored_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the headers of safetensors files.

    Raises:
        InputError: if one cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            require_regular(path)
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except Exception as error:  # whatever a damaged file makes the library raise
            raise InputError(f"The weights {path} cannot be read ({first_line(error)}).") from None
    return shapes


def weight_files(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of a component: `stem`.safetensors and what its index names.

    Args:
        folder: of the component.
        stem: first part of the files' names.
        variant: "fp16" for `stem`.fp16.safetensors, as diffusers and transformers name it.

    Raises:
        InputError: if there are none, or the index names a file that is not in the folder.
    """
    infix = "" if variant is None else f".{variant}"
    files = [folder / f"{stem}{infix}.safetensors"]
    index = folder / f"{stem}.safetensors.index{infix}.json"
    if index.exists():
        listed = read_json(index, "index of the weights", REMEDY).get("weight_map")
        names = sorted({str(n) for n in listed.values()}) if isinstance(listed, dict) else []
        for name in names:
            if not _lies_in(folder, name):
                raise InputError(f"{index} names the file {name!r}, which is not in its folder.")
        files += [folder / name for name in names]
    found = [path for path in files if path.is_file()]
    if not found:
        raise InputError(f"{folder} has no weights ({files[0].name}).")
    return found


def weight_variants(folder: Path, stem: str) -> list[str | None]:
    """Variants of a component's weights in a folder, best first; None is the plain one.

    Plain weights come first, then those in half precision, then others by name.
    """
    # stem.safetensors, stem.fp16.safetensors, stem-00001-of-00002.safetensors, ...
    form = re.compile(
        rf"{re.escape(stem)}(?:\.([^.]+?))?(?:-\d{{5}}-of-\d{{5}})?\.safetensors", re.ASCII
    )
    names = [form.fullmatch(path.name) for path in folder.glob(f"{glob.escape(stem)}*.safetensors")]
    found = {match[1] for match in names if match}
    first = (None, "fp16", "bf16")
    return [v for v in first if v in found] + sorted(v for v in found if v and v not in first)


def best_variant(folder: Path, stem: str, wanted: str | None = None) -> str | None:
    """Which variant of the weights to load: the one wanted if it is there, else the best there is.

    Source: diffusers takes the plain weights of components that lack the variant asked for.
    """
    variants = weight_variants(folder, stem)
    return wanted if wanted in variants else next(iter(variants), None)


def lacks_weights(folder: Path, components: Sequence[str]) -> bool:
    """Whether a model at the top of a folder, or in one of its components, has no safetensors file.

    Args:
        folder: of a pipeline or a network.
        components: names of sub-folders whose weights are wanted; those of others do not matter.
    """
    looked = [folder, *(folder / name for name in components)]
    return any((p / "config.json").is_file() and not any(p.glob("*.safetensors")) for p in looked)


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a name in a file means a file of that folder; a Hub snapshot links to its own blobs.

    Source: the layout of huggingface_hub's cache, models--owner--name/{snapshots/REVISION,blobs}.
    """
    if Path(name).name != name or not name.endswith(".safetensors"):
        return False
    place = folder.resolve()
    top = next((p.parent for p in place.parents if p.name == "snapshots"), place)
    return (folder / name).resolve().is_relative_to(top)


def sketch(build: Callable[[], nn.Module], tensors: int, what: str) -> nn.Module:
    """Build a network on `meta`, and give up on one that goes far beyond its weights.

    Args:
        build: makes it.
        tensors: how many the file of weights holds.
        what: what it is and where it lies, for errors.

    Raises:
        InputError: if it cannot be built, or is too large.
    """
    try:
        with quiet_libraries(), _limited(_SPARE_TENSORS + 2 * tensors, what), torch.device("meta"):
            return build()
    except InputError:
        raise
    except Exception as error:  # whatever a lying configuration makes a library raise
        raise InputError(
            f"The {what} cannot be built ({first_line(error)}); correct its configuration."
        ) from None


@contextlib.contextmanager
def _limited(tensors: int, what: str) -> Iterator[None]:
    """Within it, stop a network that registers too many tensors, modules or large tables."""
    left = {"weights": tensors, "modules": 4 * tensors, "elements": MAX_ELEMENTS}

    def spend(kind: str, amount: int) -> None:
        left[kind] -= amount
        if left[kind] < 0:
            raise InputError(
                f"The {what} is configured to be far larger than its weights; check that they "
                "belong together."
            )

    def on_buffer(_owner: nn.Module, _name: str, buffer: Tensor | None) -> None:
        spend("elements", 0 if buffer is None else buffer.numel())

    handles = [
        registration.register_module_parameter_registration_hook(lambda *_: spend("weights", 1)),
        registration.register_module_module_registration_hook(lambda *_: spend("modules", 1)),
        registration.register_module_buffer_registration_hook(on_buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_filled(build: Callable[[], nn.Module], shapes: Shapes, what: str) -> None:
    """Refuse a configuration whose network is far larger than the weights that are to fill it.

    What is missing in detail is for the library to find, once it may build the network.

    Raises:
        InputError: if it is, or cannot be built.
    """
    network = sketch(build, len(shapes), what)
    asked = sum(p.numel() for p in network.parameters())
    held = sum(_elements(shape) for shape in shapes.values())
    if asked > 4 * held + MAX_ELEMENTS:
        raise InputError(
            f"The {what} is configured with {asked:,} weights, but there are {held:,}; check that "
            "they belong together."
        )


def _elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def check_component(
    folder: Path, known: tuple[str, ...], what: str, variant: str | None = None
) -> str:
    """Check a diffusers component before the library loads it; return the name of its class.

    Args:
        folder: of the component.
        known: names of the classes accepted.
        what: what it is, for errors.
        variant: of the weights that will be loaded, if there is one; else the best there is.

    Raises:
        InputError: for another class than those known, pickled or missing weights, or a
            configuration that does not belong to the weights.
    """
    config = read_json(folder / "config.json", f"configuration of the {what}", REMEDY)
    name = str(config.get("_class_name") or "")
    # Pipelines saved before DiT had its own class.
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"
    _require_known(name, known, f"{what} in {folder}")
    import diffusers  # seconds

    check_model(folder, config, lambda: getattr(diffusers, name).from_config(config), what, variant)
    return name


def check_model(
    folder: Path,
    config: Mapping[str, Any],
    build: Callable[[], nn.Module],
    what: str,
    variant: str | None = None,
) -> None:
    """Check what lies in the folder of a diffusers model of a known class.

    Raises:
        InputError: for pickled or missing weights, or a configuration that does not belong to them.
    """
    _refuse_replacing(config, folder)
    _refuse_pickles(folder, DIFFUSERS_STEM)
    chosen = best_variant(folder, DIFFUSERS_STEM, variant)
    shapes = stored_shapes(weight_files(folder, DIFFUSERS_STEM, chosen))
    check_filled(build, shapes, f"{what} in {folder}")


def check_text_encoder(folder: Path, variant: str | None = None) -> str:
    """Check a text encoder before the library loads it; return the name of its class.

    Raises:
        InputError: as `check_component`.
    """
    what = f"text encoder in {folder}"
    config = read_json(folder / "config.json", "configuration of the text encoder", REMEDY)
    listed = config.get("architectures")
    name = str(listed[0]) if isinstance(listed, list) and listed else ""
    _require_known(name, TEXT_ENCODERS, what)
    _refuse_replacing(config, folder)
    if (folder / "adapter_config.json").exists():
        raise InputError(f"The {what} has an adapter, which is not supported; merge it first.")
    _refuse_pickles(folder, TRANSFORMERS_STEM)
    chosen = best_variant(folder, TRANSFORMERS_STEM, variant)
    shapes = stored_shapes(weight_files(folder, TRANSFORMERS_STEM, chosen))
    import transformers  # seconds

    kind = getattr(transformers, name)
    check_filled(lambda: kind(kind.config_class.from_dict(dict(config))), shapes, what)
    return name


def _require_known(name: str, known: tuple[str, ...], what: str) -> None:
    if name not in known:
        raise InputError(
            f"The {what} is a {name or 'model without a class name'}, which is not supported; "
            f"supported are {', '.join(known)}."
        )


def _refuse_replacing(config: Mapping[str, Any], folder: Path) -> None:
    for key in sorted(_REPLACING & config.keys()):
        if config[key] is not None:
            raise InputError(
                f"The configuration in {folder} has {key}, which is not supported; save the model "
                "as it was trained."
            )


def _refuse_pickles(folder: Path, stem: str) -> None:
    if any(folder.glob(f"{stem}*.safetensors")):
        return
    pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".ckpt", ".pt"))
    if pickled:
        raise InputError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when loaded; "
            "save the model again with safe_serialization=True."
        )
