"""No file a user can be handed does more than fail in one sentence, whatever is in it."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import foreign, hostile
from tests.hostile import TARGETS, refusal

from dsno.pipeline import DSNOPipeline
from dsno.teachers.flax_checkpoint import read_flax
from dsno.teachers.weights import read_tensors
from dsno.training.lpips import load_vgg16

JSON = sorted(name for name, target in TARGETS.items() if target.is_json)
BYTES = sorted(TARGETS.keys() - JSON)
QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The path and the victim of a target, built once."""
    built: dict[str, Path] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in built:
            built[name] = TARGETS[name].build(tmp_path_factory.mktemp("valid"))
        return built[name], built[name] / TARGETS[name].victim

    return get


def damaged(name: str, whole: Any, content: bytes) -> str:
    """What the reader says of a copy with that content; the valid file is put back."""
    path, victim = whole(name)
    valid = victim.read_bytes()
    try:
        victim.write_bytes(content)
        return refusal(TARGETS[name].read, path)
    finally:
        victim.write_bytes(valid)


# ---- any damage --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_undamaged_file_is_read(name: str, whole: Any) -> None:
    """Otherwise the tests below would see one and the same refusal."""
    assert refusal(TARGETS[name].read, whole(name)[0]) == ""


@pytest.mark.parametrize("name", JSON)
@QUICK
@given(draw=st.data())
def test_any_value_in_any_place_is_taken_or_refused(name: str, draw: Any, whole: Any) -> None:
    tree = json.loads(whole(name)[1].read_bytes())
    for _ in range(draw.draw(st.integers(1, 2))):
        place = draw.draw(st.sampled_from(list(hostile.places(tree))))
        value = draw.draw(st.sampled_from(hostile.VALUES))
        tree = hostile.with_value(tree, place, value, drop=draw.draw(st.integers(0, 7)) == 0)
        if not tree:
            break
    damaged(name, whole, hostile.dumped(tree))


@pytest.mark.parametrize("name", sorted({*BYTES, "edm", "scheduler"}))
@QUICK
@given(draw=st.data())
def test_any_bytes_are_taken_or_refused(name: str, draw: Any, whole: Any) -> None:
    valid = whole(name)[1].read_bytes()
    near = st.integers(0, 400) | st.integers(0, len(valid))  # headers are where the lies are
    piece = st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\x00" * 8, b"9" * 20, b"{[("])
    edits = draw.draw(st.lists(st.tuples(near, piece, st.booleans()), min_size=1, max_size=3))
    length = draw.draw(st.just(2**30) | st.integers(0, len(valid)))
    damaged(name, whole, hostile.with_bytes(valid, edits, length))


# ---- what runs code ----------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Any:
    """A file that no test may make."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["teacher", "diffusers", "edm", "student"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".safetensors"])
def test_pickled_weights_are_not_run(name: str, suffix: str, marker: Path, tmp_path: Path) -> None:
    path = TARGETS[name].build(tmp_path)
    for weights in [*path.rglob("*.safetensors")]:
        bomb = weights.with_suffix(suffix)
        weights.unlink()
        bomb.write_bytes(pickle.dumps(Bomb(marker)))
    assert refusal(TARGETS[name].read, path)


@pytest.mark.parametrize("key", ["images", "labels"])
def test_arrays_of_objects_are_not_unpickled(key: str, marker: Path, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"images": np.zeros((2, 8, 8), np.uint8), "labels": np.arange(2)}
    arrays[key] = np.array([Bomb(marker)] * 2, dtype=object)
    np.savez(tmp_path / "set.npz", **arrays)
    assert "objects" in refusal(TARGETS["npz"].read, tmp_path / "set.npz")


def test_labels_of_objects_are_not_unpickled(marker: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array([Bomb(marker)], dtype=object))
    assert refusal(TARGETS["labels"].read, tmp_path / "labels.npy")


@pytest.mark.parametrize("code", [0, 1, 2, 42, 127])
def test_a_pickle_in_a_flax_checkpoint_is_not_run(code: int, marker: Path, tmp_path: Path) -> None:
    tree = {"a": msgpack.ExtType(code, pickle.dumps(Bomb(marker)))}
    assert refusal(read_flax, foreign.write(tmp_path / "x.msgpack", tree))


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os"]
)
def test_yaml_tags_run_nothing(tag: str, marker: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f'name: {tag} ["touch {marker}"]\n')
    assert "not valid YAML" in refusal(TARGETS["recipe"].read, tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "place", ["None.py", "dsno.pipeline.py", "model/dsno.pipeline.py", "vae/diffusers.py"]
)
def test_code_in_a_students_folder_is_not_run(place: str, marker: Path, tmp_path: Path) -> None:
    path = TARGETS["student"].build(tmp_path)
    (path / place).parent.mkdir(exist_ok=True)
    (path / place).write_text(f"open({str(marker)!r}, 'w')\nclass DSNOModel: pass\n")
    assert "is Python code" in refusal(DSNOPipeline.from_pretrained, path)


def test_a_students_index_imports_nothing(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TARGETS["student"].build(tmp_path)
    (tmp_path / "stranger.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    index = json.loads((path / "model_index.json").read_text())
    for part in ("model", "vae", "tokenizer", "text_encoder"):
        for kind in (["stranger", "X"], ["stranger", "XTokenizer"], ["os", "system"], "x", [1, 2]):
            (path / "model_index.json").write_text(json.dumps({**index, part: kind}))
            assert "not supported" in refusal(DSNOPipeline.from_pretrained, path), (part, kind)


# ---- what lies elsewhere -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../stolen.safetensors", "{outside}/stolen.safetensors", "link.safetensors"]
)
@pytest.mark.parametrize("kind", ["diffusers", "student", "teacher network"])
def test_an_index_cannot_name_weights_outside_its_folder(
    kind: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "given").mkdir()
    path = TARGETS[kind].build(tmp_path / "given")
    weights = next(path.rglob("*.safetensors"))
    outside = weights.parents[1]
    weights.rename(outside / "stolen.safetensors")
    (weights.parent / "link.safetensors").symlink_to(outside / "stolen.safetensors")
    with torch.no_grad():
        tensors = read_tensors(outside / "stolen.safetensors")
    listed = dict.fromkeys(tensors, name.format(outside=outside))
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    assert "not in its folder" in refusal(TARGETS[kind].read, path)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_device_in_a_files_place_is_not_read_for_ever(name: str, tmp_path: Path) -> None:
    path = TARGETS[name].build(tmp_path)
    victim = path / TARGETS[name].victim
    victim.unlink()
    victim.symlink_to("/dev/zero")
    assert refusal(TARGETS[name].read, path) or name in ("checkpoint", "partial")


# ---- what asks for memory ----------------------------------------------------------------------


def header(description: Any, *, length: int | None = None, body: bytes = b"\0" * 64) -> bytes:
    """A safetensors file with any header."""
    text = description if isinstance(description, bytes) else json.dumps(description).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(shape: list[int], first: int, last: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [first, last]}


HEADERS = {
    "longer than the file": header({}, length=2**62),
    "negative length": header({}, length=2**64 - 8),
    "terabytes": header({"a": tensor([2**20, 2**20], 0, 2**42)}),
    "terabytes in few bytes": header({"a": tensor([2**20, 2**20], 0, 64)}),
    "overflowing shape": header({"a": tensor([2**32, 2**32], 0, 0)}),
    "negative offset": header({"a": tensor([4], -16, 0)}),
    "turned offsets": header({"a": tensor([4], 16, 0)}),
    "beyond the end": header({"a": tensor([4], 2**63, 2**63 + 16)}),
    "overlapping": header({"a": tensor([16], 0, 64), "b": tensor([16], 0, 64)}),
    "negative shape": header({"a": tensor([-4], 0, 16)}),
    "unknown type": header({"a": tensor([16], 0, 64, "PICKLE")}),
    "deeply nested": header(b'{"a":' * 100_000),
    "a list": header([1, 2, 3]),
    "not UTF-8": header(b'{"\xff": 1}'),
}


@pytest.mark.parametrize("lie", sorted(HEADERS))
def test_a_lying_header_allocates_nothing(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(HEADERS[lie])
    assert refusal(TARGETS["weights"].read, path)
    assert refusal(load_vgg16, path)


DEEP = b'{"a":' * 100_000
ALIASES = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n".encode()
    for i in range(12)
)


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("content", [DEEP, b"[" * 100_000, b"9" * 100_000, b'{"a":' + b"9" * 9999])
def test_deep_and_long_json_is_refused(name: str, content: bytes, whole: Any) -> None:
    assert damaged(name, whole, content)


@pytest.mark.parametrize(
    "content",
    [
        ALIASES,
        b"a: &a [*a]\n",
        b"a: &a {<<: *a}\n",
        b"[" * 5_000,
        b"{a: " * 5_000,
        b"- " * 5_000,
        b"seed: " + b"9" * 100_000,
        b"seed: 0x" + b"f" * 90_000,
        b"seed: 1:" + b"59:" * 30_000 + b"1",
        b"x" * 2_000_000,
    ],
    ids=range(10),
)
def test_yaml_does_not_explode(content: bytes, whole: Any) -> None:
    assert damaged("recipe", whole, content)


@pytest.mark.parametrize(
    ("text", "key"), [("a-b: 1", "a-b"), ("'[x]': 1", "[x]"), ("teacher: {x-y: 1}", "teacher.x-y")]
)
def test_an_unknown_key_of_any_characters_is_named(text: str, key: str, whole: Any) -> None:
    assert f"no recipe key '{key}'" in damaged("recipe", whole, text.encode())


def npy(shape: str, kind: str = "|u1", body: bytes = b"\0" * 64) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


SHAPES = ["(2**40,)", "(1099511627776, 8, 8)", "(4294967296, 4294967296)", "(-1,)", "(-8, -8)"]
SHAPES += ["(1e9,)", "()", "(True,)", "'x'", "(" * 500, "(0, 8, 8)", "(" + "1," * 64 + ")"]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_arrays_that_claim_terabytes_are_refused(shape: str, tmp_path: Path) -> None:
    (tmp_path / "labels.npy").write_bytes(npy(shape, "<i8"))
    assert refusal(TARGETS["labels"].read, tmp_path / "labels.npy")
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", npy(shape))
    assert refusal(TARGETS["npz"].read, tmp_path / "set.npz")


def test_a_bomb_of_an_npz_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """2 GiB of zeros in 2 MiB, honest about it or not."""
    with (
        zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(npy("(33554432, 8, 8)", body=b""))
        for _ in range(64):
            entry.write(bytes(2**20))
    content = bytearray((tmp_path / "set.npz").read_bytes())
    assert len(content) < 2**20
    assert refusal(TARGETS["npz"].read, tmp_path / "set.npz")


def test_a_bomb_of_a_png_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    )
    assert "too many pixels" in refusal(TARGETS["image"].read, tmp_path)


def packed(*parts: bytes) -> bytes:
    return b"\x81\xaaema_params" + b"".join(parts)


@pytest.mark.parametrize(
    "content",
    [
        packed(b"\xdf\xff\xff\xff\xff"),  # maps, arrays, bytes, text and extensions of 4 GiB
        packed(b"\xdd\xff\xff\xff\xff"),
        packed(b"\xc6\xff\xff\xff\xff"),
        packed(b"\xdb\xff\xff\xff\xff"),
        packed(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01"),
        packed(b"\x81\xa1a" * 100_000),
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000,
    ],
    ids=range(8),
)
def test_a_checkpoint_that_claims_gigabytes_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.msgpack").write_bytes(content)
    assert refusal(read_flax, tmp_path / "x.msgpack")


LARGE: dict[str, list[tuple[str, Any]]] = {
    "teacher": [("sample_shape", [1, 2**15, 2**15]), ("sample_shape", [2**20] * 8)],
    "teacher network": [
        ("block_out_channels", [8, 2**16]),
        ("layers_per_block", 10**6),
        ("num_class_embeds", 10**9),
        ("in_channels", 10**9),
    ],
    "own teacher": [
        ("network.model_channels", 2**20),
        ("network.num_blocks", 10**9),
        ("network.channel_mult", [1] * 10**5),
        ("network.img_resolution", 2**40),
        ("network.label_dim", 10**10),
    ],
    "diffusers": [("block_out_channels", [8, 2**16]), ("sample_size", 2**40)],
    "edm": [
        ("network.arguments.model_channels", 2**20),
        ("network.arguments.num_blocks", 10**9),
        ("network.arguments.img_resolution", 2**40),
        ("network.arguments.augment_dim", 10**10),
    ],
    "scheduler": [("num_train_timesteps", 10**12), ("num_train_timesteps", 2**31)],
    "student": [
        ("slices", 10**9),
        ("modes", 10**9),
        ("site_channels", [10**6] * 7),
        ("sample_shape", [2**15, 2**15, 2**15]),
        ("backbone_config.block_out_channels", [8, 2**16]),
        ("preconditioning.schedule", {"name": "betas", "timesteps": 10**10}),
    ],
}


@pytest.mark.parametrize(
    ("name", "key", "value"), [(n, k, v) for n, rows in LARGE.items() for k, v in rows]
)
def test_a_configuration_that_asks_for_gigabytes_is_refused(
    name: str, key: str, value: Any, whole: Any
) -> None:
    tree = json.loads(whole(name)[1].read_bytes())
    assert damaged(
        name, whole, hostile.dumped(hostile.with_value(tree, tuple(key.split(".")), value))
    )
