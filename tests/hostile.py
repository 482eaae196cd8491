"""What a stranger's file may do: succeed, or fail in one sentence. Targets, damage and the oracle.

Used by `tests/test_hostile_files.py` (hypothesis) and `tools/fuzz.py` (coverage-guided).
"""

from __future__ import annotations

import copy
import json
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import foreign, makers

from dsno import data, lmdb_import
from dsno.backbones import registry
from dsno.backbones.edm import SongUNet
from dsno.backbones.folders import stored_shapes
from dsno.denoisers import Preconditioning
from dsno.errors import DsnoError
from dsno.files import read_json
from dsno.operator import DSNO
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.recipes.load import load_recipe, shipped_recipes
from dsno.schedules import CosineSchedule
from dsno.teachers.edm import load_edm
from dsno.teachers.flax_checkpoint import read_flax
from dsno.teachers.pipelines import diffusers_teacher
from dsno.teachers.schedulers import scheduler_meaning
from dsno.teachers.store import Teacher, denoiser_of, load_teacher, save_teacher
from dsno.teachers.unet import build_unet
from dsno.teachers.weights import read_tensors
from dsno.text import read_prompts

MEMORY = 400 * 2**20
"""Bytes that a damaged copy of these tiny files may make a process grow by."""


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        build: writes a valid one into a folder and returns the path that `read` takes.
        read: the reader under test.
        victim: the file that is damaged, below that path; empty for itself.
        is_json: whether it is damaged as a value rather than as bytes.
    """

    build: Callable[[Path], Path]
    read: Callable[[Path], object]
    victim: str = ""
    is_json: bool = False


# ---- the valid files ---------------------------------------------------------------------------


def _recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(shipped_recipes()["digits"])
    return path


def tiny_teacher(classes: int | None = None) -> Teacher:
    """A U-Net of two levels, with random weights."""
    network = build_unet((1, 8, 8), channels=(8, 8), norm_num_groups=4, num_classes=classes).eval()
    meaning = Preconditioning(CosineSchedule(), "v_prediction")
    return Teacher(denoiser_of(network, meaning, (1, 8, 8)), num_classes=classes)


def _teacher(folder: Path) -> Path:
    save_teacher(tiny_teacher(), folder / "teacher")
    return folder / "teacher"


def _own_teacher(folder: Path) -> Path:
    """One whose network is configured in denoiser.json itself."""
    network = SongUNet(
        img_resolution=8, in_channels=1, out_channels=1, model_channels=4, channel_mult=[1],
        num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    meaning = Preconditioning(CosineSchedule(), "v_prediction")
    save_teacher(Teacher(denoiser_of(network, meaning, (1, 8, 8))), folder / "teacher")
    return folder / "teacher"


def _diffusers(folder: Path) -> Path:
    return makers.ddpm_folder(folder / "ddpm")


def _scheduler(folder: Path) -> Path:
    return _diffusers(folder) / "scheduler" / "scheduler_config.json"


def _edm(folder: Path) -> Path:
    return foreign.edm_export(folder / "edm")


def _weights(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file({"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, path)
    return path


def _flax(folder: Path) -> Path:
    tree = {"conv": {"kernel": np.ones((1, 2, 3), np.float32), "bias": np.zeros(3, np.float16)}}
    return foreign.write(folder / "checkpoint.msgpack", tree)


def _labels(folder: Path) -> Path:
    np.save(folder / "labels.npy", np.arange(6))
    return folder / "labels.npy"


def _npz(folder: Path) -> Path:
    pixels = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    np.savez(folder / "set.npz", images=pixels, labels=np.array([0, 1, 1]))
    return folder / "set.npz"


def _image(folder: Path) -> Path:
    (folder / "images").mkdir()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / "images/a.png")
    return folder / "images"


def images() -> list[bytes]:
    """One small picture in every format that is read."""
    made = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        buffer = BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
        made.append(buffer.getvalue())
    return made


def _prompts(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("a cat\n\n zwei Hünde\n")
    return folder / "prompts.txt"


def _student(folder: Path) -> Path:
    denoiser = tiny_teacher().denoiser
    sites = registry.backbone_of(denoiser.network).sites(denoiser.network)
    operator = DSNO.from_teacher(denoiser, sites)
    save_pipeline(DSNOModel.from_operator(operator), folder / "student")
    return folder / "student"


def _read_data(source: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        data._load.cache_clear()  # keyed by the path, which is always the same here
        return data.load_data(source, str(path))

    return read


TARGETS: dict[str, Target] = {
    "recipe": Target(_recipe, lambda path: load_recipe(str(path))),
    "teacher": Target(_teacher, load_teacher, "denoiser.json", is_json=True),
    "teacher network": Target(_teacher, load_teacher, "config.json", is_json=True),
    "own teacher": Target(_own_teacher, load_teacher, "denoiser.json", is_json=True),
    "diffusers": Target(_diffusers, diffusers_teacher, "unet/config.json", is_json=True),
    "pipeline": Target(_diffusers, diffusers_teacher, "model_index.json", is_json=True),
    "scheduler": Target(
        _scheduler,
        lambda path: scheduler_meaning(read_json(path, "scheduler", "save it again")),
        is_json=True,
    ),
    "edm": Target(_edm, load_edm, "network.json", is_json=True),
    "edm weights": Target(_edm, load_edm, "network.safetensors"),
    "weights": Target(_weights, lambda path: (stored_shapes([path]), read_tensors(path))),
    "flax": Target(_flax, read_flax),
    "labels": Target(_labels, lambda path: lmdb_import._read_labels(path.parent, path)),
    "npz": Target(_npz, _read_data("npz")),
    "image": Target(_image, _read_data("folder"), "a.png"),
    "prompts": Target(_prompts, read_prompts),
    "student": Target(_student, DSNOPipeline.from_pretrained, "model/config.json", is_json=True),
    "student index": Target(
        _student, DSNOPipeline.from_pretrained, "model_index.json", is_json=True
    ),
    "student weights": Target(
        _student, DSNOPipeline.from_pretrained, "model/diffusion_pytorch_model.safetensors"
    ),
}


# ---- the oracle --------------------------------------------------------------------------------


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """Read a file; return the error's sentence, empty if there was none.

    Any exception but ours passes through, and so does an error that is not one sentence.
    """
    before = _largest()
    try:
        read(path)
        sentence = ""
    except DsnoError as error:
        sentence = str(error)
        assert sentence.isprintable(), f"lines or controls: {sentence!r}"
        assert sentence.endswith((".", "?")), f"no sentence: {sentence!r}"
    grown = _largest() - before
    assert grown < MEMORY, f"the process grew by {grown:,} bytes"
    return sentence


def _largest() -> int:
    """Bytes of memory that this process ever had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---- damage ------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 7, 2**15, 2**31, 2**62, 2**64, 10**30),
    *(0.5, -0.5, 1e-320, 1e308, float("inf"), float("nan")),
    *("", "x", "../../x", "/dev/zero", "a\nb", "\x00", "1e9", "a" * 5_000),
    *([], {}, [1], [0, -1], [[1]] * 3, [10**6] * 6, [1] * 3_000, {"a": {"b": []}}),
    *("AutoencoderKL", "UNet2DConditionModel", "CLIPTextModel", ["os", "system"]),
)


def places(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value inside a JSON value lies."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inside:
        yield (*here, key)
        if isinstance(value, dict | list):
            yield from places(value, (*here, key))


def with_value(tree: Any, place: tuple[Any, ...], value: Any, *, drop: bool = False) -> Any:
    """A copy of a JSON value with another value in one place, or without it."""
    made = copy.deepcopy(tree)
    owner = made
    for key in place[:-1]:
        owner = owner[key]
    if drop:
        del owner[place[-1]]
    else:
        owner[place[-1]] = value
    return made


def with_bytes(content: bytes, edits: list[tuple[int, bytes, bool]], length: int) -> bytes:
    """A copy with bytes replaced or put in at places modulo its length, cut to `length`."""
    made = bytearray(content)
    for place, piece, insert in edits:
        start = place % (len(made) + 1)
        made[start : start if insert else start + len(piece)] = piece
    return bytes(made[:length])


def dumped(value: Any) -> bytes:
    """JSON as bytes, infinities and all."""
    return json.dumps(value).encode()
