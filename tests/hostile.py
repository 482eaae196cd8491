"""What a stranger's file may do: succeed, or fail in one sentence. Targets, damage and the oracle.

Used by `tests/end_to_end/test_hostile_files.py` (hypothesis) and `tools/fuzz.py` (coverage-guided).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import resource
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from dsno import cli
from dsno.backbones import registry
from dsno.backbones.edm import SongUNet
from dsno.backbones.safe_loading import stored_shapes
from dsno.backbones.text_encoder import read_prompts
from dsno.data import load
from dsno.diffusion.denoisers import Preconditioning
from dsno.diffusion.schedules import CosineSchedule
from dsno.evaluation.statistics import load_statistics
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig
from dsno.pipeline import DSNOModel, DSNOPipeline, save_pipeline
from dsno.recipes.load import load_recipe, shipped_recipes
from dsno.recipes.schema import Optimisation
from dsno.runs.locate import saved_recipe
from dsno.runs.run import Run
from dsno.support.errors import DsnoError, InputError, WorkError
from dsno.support.files import read_json, sha256
from dsno.support.storage import StorageDir
from dsno.teachers.edm import load_edm
from dsno.teachers.flax_checkpoint import read_flax
from dsno.teachers.pipelines import diffusers_teacher
from dsno.teachers.schedulers import scheduler_settings
from dsno.teachers.store import Teacher, denoiser_of, load_teacher, save_teacher
from dsno.teachers.unet import build_unet
from dsno.teachers.weights import read_tensors
from dsno.training.losses import Objective
from dsno.training.trainer import train
from dsno.trajectories import lmdb as lmdb_import
from dsno.trajectories import manifest as trajectories
from dsno.trajectories import partial_shards as partials
from dsno.trajectories.dataset import TrajectoryStore
from dsno.trajectories.exchange.export import export_trajectories
from dsno.trajectories.exchange.restore import restore
from dsno.trajectories.manifest import Manifest
from dsno.trajectories.prompts import EMBEDDED, Prompts, write_prompts
from dsno.trajectories.shards import write_shard
from tests import foreign, makers

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


def _statistics(folder: Path) -> Path:
    about = {"name": "a", "space": "pixels", "record": {"dimension": 2}, "identity": "b"}
    arrays = {"mu": np.zeros(2), "sigma": np.eye(2), "count": np.int64(9)}
    np.savez(folder / "statistics.npz", **arrays, features=np.array(json.dumps(about)))
    return folder / "statistics.npz"


def _image(folder: Path) -> Path:
    (folder / "images").mkdir()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / "images/a.png")
    return folder / "images"


def _label_file(name: str, content: str) -> Callable[[Path], Path]:
    """Two images with a label file beside them."""

    def build(folder: Path) -> Path:
        for stem in "ab":
            shutil.copy(_image(folder) / "a.png", folder / f"{stem}.png")
            shutil.rmtree(folder / "images")
        (folder / name).write_text(content)
        return folder

    return build


def _zipped_images(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(_image(folder) / "a.png", "00000/a.png")
        archive.writestr("dataset.json", '{"labels": [["00000/a.png", 1]]}')
    return folder / "set.zip"


def images() -> list[bytes]:
    """One small picture in every format that is read."""
    made = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
        made.append(buffer.getvalue())
    return made


def _prompts(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("a cat\n\n zwei Hünde\n")
    return folder / "prompts.txt"


def _student(folder: Path) -> Path:
    denoiser = tiny_teacher().denoiser
    sites = registry.backbone_of(denoiser.network).sites(denoiser.network)
    operator = DSNO.from_teacher(denoiser, LiftConfig(sites))
    save_pipeline(DSNOModel.from_operator(operator), folder / "student")
    return folder / "student"


def manifest_of(**changes: Any) -> Manifest:
    """Five trajectories with every kind of condition, in shards of two."""
    values: dict[str, Any] = {
        "tag": "a",
        "count": 5,
        "shard_size": 2,
        "sample_shape": (1, 2, 2),
        "times": (0.5, 0.0),
        "scales": (1.5, 1.0),
        "dtype": "float16",
        "seed": 0,
        "num_classes": 5,
        "solver": {"method": "ddim", "steps": 4, "spacing": "uniform", "nfe": 4},
        "guidance_scale": (1.0, 2.0),
        "prompts": 3,
    }
    return Manifest(**{**values, **changes})


def rows_of(items: range) -> dict[str, torch.Tensor]:
    """What a shard of `manifest_of` holds for some items."""
    count = len(items)
    return {
        "noise": torch.ones(count, 1, 2, 2).half(),
        "states": torch.ones(count, 2, 1, 2, 2).half(),
        "class_labels": torch.arange(count),
        "guidance_scale": torch.ones(count),
        "prompt_index": torch.zeros(count, dtype=torch.int32),
    }


def _recorded(folder: Path) -> Path:
    """Trajectories whose shards have records of their own still."""
    prompts = Prompts(("a cat", "a dog", "none"), torch.ones(3, 4, 2).half())
    checksum = write_prompts(folder, prompts)
    manifest = manifest_of(prompts_sha256=checksum)
    trajectories.save_manifest(folder, manifest)
    for index in range(manifest.shard_count):
        write_shard(folder, manifest, index, rows_of(manifest.items(index)))
    return folder


def _trajectories(folder: Path) -> Path:
    trajectories.compact(_recorded(folder))
    return folder


def _exported(folder: Path) -> Path:
    """Trajectories in the layout of WebDataset."""
    store, out = StorageDir(_trajectories(folder / "store")), StorageDir(folder / "out")
    with contextlib.redirect_stderr(io.StringIO()):
        export_trajectories(store, out, "webdataset", schedule=CosineSchedule())
    return folder / "out"


def _partial(folder: Path) -> Path:
    partials.save_partial(StorageDir(folder), manifest_of(), 0, rows_of(range(1)))
    return folder


def _run(folder: Path) -> Path:
    """A run with a finished teacher and trajectories."""
    run = Run(load_recipe("digits"), folder / "run")
    (folder / "run" / "trajectories").mkdir(parents=True)
    _trajectories(folder / "run" / "trajectories")
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(run.values, sort_keys=False))
    with run._books():
        run._begin("teacher")
    run._close("teacher", 1.5, finished=True, full=False)
    return run.folder


class _Line(Objective):
    """Training of the smallest network, on what is always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(2, 1)

    @property
    def networks(self) -> list[torch.nn.Module]:
        return [self.model]

    def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        error: torch.Tensor = self.model(torch.ones(1, 2)).square()
        return error.mean(), error.detach().mean(0)


def _train(folder: Path) -> None:
    """Train from the newest checkpoint that can be used."""
    plan = Optimisation(
        steps=3, learning_rate=0.1, batch_size=1, checkpoint_every=2, log_every=1, clip_norm=None
    )
    with contextlib.redirect_stderr(io.StringIO()):
        train(_Line(), lambda step, places: {}, plan, folder, seed=0, tag="a")


def _train_from(checkpoint: Path) -> None:
    """Train from one checkpoint, whose checksum is right whatever it holds."""
    if not checkpoint.is_file():  # it has no checksum then
        return _train(checkpoint.parent)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(checkpoint, folder))
        copy.with_suffix(".sha256").write_text(sha256(copy))
        _train(Path(folder))


def _checkpoint(folder: Path) -> Path:
    (folder / "checkpoints").mkdir()
    _train(folder / "checkpoints")
    return folder / "checkpoints"


def _checkpoint_state(folder: Path) -> Path:
    saved = torch.load(_checkpoint(folder) / "step-00000002.pt", weights_only=True)
    (folder / "checkpoints" / "state.json").write_text(json.dumps(saved["state"]))
    return folder / "checkpoints"


# ---- their readers -----------------------------------------------------------------------------


def command(*arguments: str) -> str:
    """What a command prints; its refusal is raised."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(out, "utf-8", write_through=True)),
        contextlib.redirect_stderr(io.TextIOWrapper(err, "utf-8", write_through=True)),
    ):
        code = cli.main(list(arguments))
        shown, said = out.getvalue().decode(), err.getvalue().decode()
    assert all(line.isprintable() for line in shown.split("\n")), repr(shown)
    assert code in (0, 1, 2)
    if said.startswith("dsno: "):
        raise (WorkError if code == 1 else InputError)(said.removeprefix("dsno: ").rstrip("\n"))
    assert code < 2, said
    return shown


def _read_trajectories(path: Path) -> None:
    command("trajectories", "verify", str(path))
    command("trajectories", "info", str(path))
    store = TrajectoryStore(path)
    store.rows(torch.arange(len(store)))


def _read_signed(path: Path) -> None:
    """Shards and embeddings whose checksums are right whatever they hold."""
    manifest = trajectories._read_manifest(StorageDir(path))
    shards = tuple(
        dataclasses.replace(s, bytes=(path / s.file).stat().st_size, sha256=sha256(path / s.file))
        if (path / s.file).is_file()
        else s
        for s in manifest.shards
    )
    signed = dataclasses.replace(manifest, shards=shards)
    if (path / EMBEDDED).is_file():
        checksum = sha256(path / EMBEDDED)
        signed = dataclasses.replace(signed, prompts_sha256=checksum)
    trajectories.save_manifest(path, signed)
    _read_trajectories(path)


def _read_export(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        restore(StorageDir(path), Path(folder) / "back")


def _read_run(path: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        run = Run(saved_recipe(path), path)
        if run._prepare("teacher", full=False):
            run._close("teacher", 1.0, finished=False, full=False)
        run.require("teacher")


def _train_from_state(path: Path) -> None:
    saved = torch.load(path / "step-00000002.pt", weights_only=True)
    saved["state"] = read_json(path / "state.json", "state", "mend it")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(saved, Path(folder) / "step-00000002.pt")
        _train_from(Path(folder) / "step-00000002.pt")


def _read_data(source: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        load._load.cache_clear()  # keyed by the path, which is always the same here
        return load.load_data(source, str(path))

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
        lambda path: scheduler_settings(read_json(path, "scheduler", "save it again")),
        is_json=True,
    ),
    "edm": Target(_edm, load_edm, "network.json", is_json=True),
    "edm weights": Target(_edm, load_edm, "network.safetensors"),
    "weights": Target(_weights, lambda path: (stored_shapes([path]), read_tensors(path))),
    "flax": Target(_flax, read_flax),
    "labels": Target(_labels, lambda path: lmdb_import._read_labels(path.parent, path)),
    "npz": Target(_npz, _read_data("npz")),
    "statistics": Target(_statistics, load_statistics),
    "image": Target(_image, _read_data("folder"), "a.png"),
    "images in a zip file": Target(_zipped_images, _read_data("folder")),
    "dataset.json": Target(
        _label_file("dataset.json", '{"labels": [["a.png", 1], ["b.png", 0]]}'),
        _read_data("folder"),
        "dataset.json",
        is_json=True,
    ),
    "metadata.csv": Target(
        _label_file("metadata.csv", "file_name,label\na.png,ant\nb.png,ant\n"),
        _read_data("folder"),
        "metadata.csv",
    ),
    "metadata.jsonl": Target(
        _label_file(
            "metadata.jsonl",
            '{"file_name": "a.png", "label": 1}\n{"file_name": "b.png", "label": 0}\n',
        ),
        _read_data("folder"),
        "metadata.jsonl",
    ),
    "prompts": Target(_prompts, read_prompts),
    "manifest": Target(_trajectories, _read_trajectories, "manifest.json", is_json=True),
    "record": Target(_recorded, _read_trajectories, "shard-00001.json", is_json=True),
    "shard": Target(_trajectories, _read_signed, "shard-00000.safetensors"),
    "list of prompts": Target(_trajectories, _read_trajectories, "prompts.json", is_json=True),
    "embeddings": Target(_trajectories, _read_signed, "prompts.safetensors"),
    "index of an export": Target(_exported, _read_export, "index.json", is_json=True),
    "partial": Target(
        _partial,
        lambda path: partials.load_partial(StorageDir(path), manifest_of(), 0),
        "partial-00000.safetensors",
    ),
    "checkpoint": Target(
        _checkpoint, lambda path: _train_from(path / "step-00000002.pt"), "step-00000002.pt"
    ),
    "state": Target(_checkpoint_state, _train_from_state, "state.json", is_json=True),
    "stages": Target(_run, _read_run, "stages.json", is_json=True),
    "run": Target(_run, lambda path: command("trajectories", "info", str(path)), "recipe.yaml"),
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
    *("", "x", "\ud800", "\x1b[2J", "../../x", "/dev/zero", "a\nb", "\x00", "1e9", "a" * 5_000),
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
