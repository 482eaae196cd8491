"""What counts of the files that a recipe names, and when they are read."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from dsno.recipes import load_recipe
from dsno.recipes.effects import result_values
from dsno.recipes.schema import Finish
from dsno.runs import dependencies
from dsno.runs.dependencies import content_hash, stamps
from dsno.runs.identity import tag_of
from dsno.runs.records import StageRecord, write_stage
from dsno.runs.run import Run


def fill(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    ("key", "counts", "ignored"),
    [
        (
            "teacher.source",  # a pipeline
            (
                "model_index.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
                "scheduler/scheduler_config.json",
                "tokenizer/merges.txt",
                "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
            ),
            ("README.md", "v1-5-pruned.safetensors", "safety_checker/model.safetensors"),
        ),
        ("teacher.source", ("denoiser.json", "network.safetensors"), ("notes.txt",)),
        ("teacher.source", ("config.json", "../scheduler/scheduler_config.json"), ("a.bin",)),
        ("collect.source", ("data.mdb", "labels.npy"), ("lock.mdb",)),
        ("collect.source", ("data.mdb", "../labels.npy"), ("lock.mdb",)),
        ("collect.source", ("index.json",), ("00000.tar", "data.mdb")),
        ("train.start_from", ("model/diffusion_pytorch_model.safetensors",), ("history.json",)),
    ],
)
def test_the_files_that_are_read_count_and_no_others(
    key: str, counts: tuple[str, ...], ignored: tuple[str, ...], tmp_path: Path
) -> None:
    folder = fill(tmp_path / "pipeline" / "source", (*counts, *ignored))
    hashes = {content_hash(key, folder, {})}
    for name in ignored:
        (folder / name).write_text("other")
    assert {content_hash(key, folder, {})} == hashes
    for name in counts:
        (folder / name).write_text(f"other {name}")
        hashes.add(content_hash(key, folder, {}))
    assert len(hashes) == 1 + len(counts)
    assert "" not in hashes


@pytest.mark.parametrize("key", ["train.vgg16", "data.path", "teacher.source", "collect.source"])
def test_a_single_file_has_its_checksum(key: str, tmp_path: Path) -> None:
    """The fingerprints of finished runs hold these hashes."""
    (tmp_path / "file.npz").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert content_hash(key, tmp_path / "file.npz", {}) == "ba7816bf8f01cfea"


def test_a_students_weights_have_the_hash_of_earlier_versions(tmp_path: Path) -> None:
    fill(tmp_path, ("model/b.safetensors", "model/a.safetensors"))
    each = {
        name: hashlib.sha256(f"model/{name}".encode()).hexdigest()[:16]
        for name in ("a.safetensors", "b.safetensors")
    }
    text = json.dumps(each, separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert content_hash("train.start_from", tmp_path, {}) == expected


def test_names_without_local_files_have_no_hash(tmp_path: Path) -> None:
    images = fill(tmp_path / "images", ("cat/1.png",))
    for key, name in (("teacher.source", "google/ddpm"), ("data.path", str(images))):
        assert content_hash(key, Path(name), {}) == ""
        assert stamps(key, Path(name), {}) == {}


def test_a_file_is_read_again_only_if_its_size_or_time_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(dependencies, "sha256", counted)
    monkeypatch.setattr(dependencies, "LARGE", 3)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"abc")
    known = stamps("teacher.source", path, {})
    assert read == ["weights.safetensors"]
    assert "weights.safetensors (0.0 GB) once" in capsys.readouterr().err
    dependencies._sha256_once.cache_clear()  # as in another process
    first = content_hash("teacher.source", path, known)
    assert len(read) == 1
    os.utime(path, ns=(1, 1))
    assert content_hash("teacher.source", path, known) == first
    assert len(read) == 2
    path.write_bytes(b"abcd")
    os.utime(path, ns=(known[str(path)]["changed"],) * 2)
    assert content_hash("teacher.source", path, known) != first


@pytest.mark.parametrize("clips", [None, 1.0])
def test_what_guided_trajectories_depend_on_is_known_before_their_teacher_is_there(
    clips: float | None, tmp_path: Path
) -> None:
    recipe = load_recipe(
        "digits", ["teacher.label_dropout=0.1", "collect.guidance_scale=3", "name=g"]
    )
    run = Run(recipe, tmp_path / "run")
    before = run.fingerprint("collect")
    (tmp_path / "run" / "teacher").mkdir(parents=True)
    description = {"clip_sample": clips, "dynamic_threshold": None}
    (tmp_path / "run" / "teacher" / "denoiser.json").write_text(json.dumps(description))
    assert run.fingerprint("collect") == before
    unguided = load_recipe("digits", ["teacher.label_dropout=0.1", "name=g"])
    assert Run(unguided, tmp_path / "other").fingerprint("collect") != before


FINISH = "finish={steps: 60, batch_size: 4, learning_rate: 1e-3%s}"


def imported(folder: Path, *more: str, looks: str = "") -> Run:
    """A run of an imported teacher, with a finish; nothing of it is made."""
    keys = ["teacher.source=nowhere", "collect.count=4", FINISH % looks, *more]
    return Run(load_recipe("distill", keys), folder)


def test_a_finish_depends_on_what_its_samples_are_compared_with(tmp_path: Path) -> None:
    without, digits = imported(tmp_path), imported(tmp_path, "data.source=digits")
    assert without.fingerprint("train") == digits.fingerprint("train")
    assert without.fingerprint("finish") != digits.fingerprint("finish")

    same = imported(tmp_path, "evaluate.features=[pixels]", "evaluate.torchscript=a.pt")
    assert without.fingerprint("finish") == same.fingerprint("finish")
    detectors = [fill(tmp_path, (name,)) / name for name in ("a.pt", "b.pt")]
    looks = ", watch_features: torchscript, watch_torchscript: "
    found = {
        imported(tmp_path / "run", looks=f"{looks}{file}").fingerprint("finish")
        for file in detectors
    }
    assert len(found) == 2


def test_a_finish_recorded_without_its_data_stays_valid(tmp_path: Path) -> None:
    run = imported(tmp_path, "data.source=digits")
    inputs = {"finish": result_values(Finish, run.values["finish"])}
    recorded = tag_of(run.fingerprint("train"), inputs)
    assert run.fingerprint("finish") != recorded
    record: StageRecord = {
        "fingerprint": recorded,
        "inputs": inputs,
        "seconds": 1.0,
        "finished": True,
        "files": {},
    }
    write_stage(tmp_path, "finish", record)
    assert run.fingerprint("finish") == recorded
