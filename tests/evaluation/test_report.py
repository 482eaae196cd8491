"""The report: whole, self-contained, honest, and clear about bad input."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dsno.evaluation import figures, report, wording
from dsno.evaluation.report import write_report
from dsno.support.errors import InputError

FIGURES = {"real", "teacher", "ddim", "student", "trajectories"}
PLOTS = {"quality", "time", "losses", "spectrum"}
LINKS = ("src", "href", "srcset", "poster", "action", "data")


def sampler(name: str, label: str, nfe: int, distance: float, **others: Any) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "nfe": nfe,
        "spacing": None if name == "dsno" else "uniform",
        "frechet_distance": {"pixels": distance / 10, "classifier": distance},
        "seconds_per_sample": 1e-4 * nfe,
        "relative_time": 0.7 * nfe,
        "paired_l1": 0.4 / nfe,
        **others,
    }


def measured(distance: float, precision: float, recall: float) -> dict[str, Any]:
    """The other metrics of a sampler, and the errors."""

    def estimates(value: float) -> dict[str, Any]:
        return {"classifier": {"value": value, "standard_error": value / 20}}

    return {
        "frechet_error": {"pixels": distance / 200, "classifier": distance / 20},
        "kernel_distance": estimates(distance / 100),
        "precision": {"classifier": precision},
        "recall": {"classifier": recall},
        "inception_score": estimates(8 * precision),
    }


def example() -> dict[str, Any]:
    """What `dsno evaluate` would write; one sampler as an earlier version measured it."""
    return {
        "name": "digits",
        "samples": 5000,
        "samplers": [
            sampler("dpm++2m", "DPM-Solver++(2M)", 16, 1.8, **measured(1.8, 0.875, 0.75)),
            sampler("ddim", "DDIM", 16, 4.5),
            sampler("ddim", "DDIM", 1, 1611.0, **measured(1611, 0.25, 0.0)),
            sampler("ddim", "DDIM", 16, 5.6, spacing="quadratic", paired_l1=None),
            sampler("ddim", "DDIM", 32, 2.6),
            sampler("dsno", "DSNO", 1, 3.9, **measured(3.9, 0.75, 0.625)),
        ],
        "step_equivalence": [
            {"solver": "ddim", "features": "pixels", "relation": "=", "evaluations": 3.0},
            {"solver": "ddim", "features": "classifier", "relation": "=", "evaluations": 19.3},
            {"solver": "dpm++2m", "features": "classifier", "relation": "<", "evaluations": 16},
            {"solver": "unipc", "features": "classifier", "relation": ">=", "evaluations": 8},
        ],
        "reference": {
            "name": "digits",
            "count": 1797,
            "split_half_distance": {"pixels": 0.2, "classifier": 1.6},
        },
        "features": {
            "pixels": {"dimension": 64},
            "classifier": {"dimension": 64, "held_out_accuracy": 0.985, "seed": 0},
        },
        "paired_reference": {"method": "dpm++2m", "steps": 24, "spacing": "uniform"},
        "verdict": {"student": 3.9, "ddim": 4.5, "ddim_nfe": 16, "features": "classifier"},
        "trained_times": [0.5625, 0.0],
        "student_history": [
            {"step": i, "loss": 1 / i, "per_time": [1 / i, 2 / i], "learning_rate": 1e-3}
            for i in (50, 100, 150)
        ],
        "teacher_history": [{"step": i, "loss": 1 / i} for i in (50, 100)],
        "spectrum": {"modes": [0, 1, 2, 3], "power": [90.0, 9.0, 0.9, 0.1], "kept": 2},
        "parameters": {"teacher": 170113, "student": 190593, "temporal": 20480},
        "trajectories": {"count": 32768, "solver": "dpm++2m", "steps": 12, "nfe": 12},
        "durations": {"teacher": 62.4, "collect": 48.31, "train": 4260.0},
        "recipe": {"name": "digits", "student": {"modes": 2}},
        "environment": {"python": "3.11.9", "device": "cpu", "cpu_count": 2},
        "command": "dsno run digits --out runs/digits",
    }


def example_arrays() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    arrays = {
        name: torch.rand(8, 1, 8, 8, generator=generator) * 2 - 1
        for name in (report.REAL, *report.SAMPLES)
    }
    arrays["trajectory_times"] = torch.tensor([1.0, 0.5625, 0.0])
    for name in report.TRAJECTORIES:
        arrays[name] = torch.randn(2, 3, 1, 8, 8, generator=generator)
    return arrays


def write(
    folder: Path, metrics: dict[str, Any], arrays: dict[str, torch.Tensor] | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    save_file(example_arrays() if arrays is None else arrays, folder / "arrays.safetensors")
    return folder


def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the figures by white squares, for tests of the text alone."""
    blank = Image.new("RGB", (4, 4), "white")
    for name in ("quality", "losses", "spectrum", "trajectories"):
        monkeypatch.setattr(figures, name, lambda *_, **__: blank)


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<style>.*?</style>", "", html)))


class Tags(HTMLParser):
    """Every tag with its attributes, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished report of the example; not to be changed."""
    folder = write(tmp_path_factory.mktemp("run") / "report", example())
    assert write_report(folder) == folder / "report.html"
    return folder


def test_page_needs_nothing_from_outside(made: Path) -> None:
    html = (made / "report.html").read_text(encoding="utf-8")
    tags = Tags(html).found
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "a", "base", "object"}
    sources = [value for _, attrs in tags for name, value in attrs.items() if name in LINKS]
    assert sources
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", html))


def test_every_figure_is_a_drawn_png_and_is_embedded_byte_for_byte(made: Path) -> None:
    paths = sorted((made / "figures").iterdir())
    assert {path.stem for path in paths} == FIGURES | PLOTS
    images = [
        attrs for tag, attrs in Tags((made / "report.html").read_text()).found if tag == "img"
    ]
    embedded = {attrs["src"] for attrs in images}
    assert len(images) == len(paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) >= 90
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
        uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        assert uri in embedded


def test_every_image_has_its_own_alternative_text(made: Path) -> None:
    tags = Tags((made / "report.html").read_text()).found
    texts = [attrs.get("alt") or "" for tag, attrs in tags if tag == "img"]
    assert all(len(text) > 20 for text in texts)
    assert len(set(texts)) == len(texts)


def test_only_whole_files_are_left(made: Path) -> None:
    names = {path.name for path in made.iterdir()}
    assert names == {"metrics.json", "arrays.safetensors", "figures", "report.html"}


def test_sections_come_in_reading_order(made: Path) -> None:
    headings = re.findall(r"<h[12]>(.*?)</h", (made / "report.html").read_text())
    assert headings == [
        "digits",
        "Samples",
        "Trajectories",
        "Quality against network evaluations",
        "Time per sample",
        "Training",
        "How trajectories vary in time",
        "All samplers",
        "How it was made",
    ]


def test_every_distance_names_its_features_and_none_is_called_fid(made: Path) -> None:
    text = text_of((made / "report.html").read_text())
    assert "FID" not in text
    assert "Frechet distance (classifier features), student, one evaluation 3.90" in text
    assert "Frechet distance (pixel features)" in text


def test_the_page_names_what_decides_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_drawing(monkeypatch)
    values = example()
    values |= {
        "seed": 7,
        "arithmetic": {"precision": "bf16", "compiled": True},
        "batch_size": 500,
        "protocol": {
            "split": "test",
            "shape": [1, 8, 8],
            "ema_decay": {"teacher": None, "student": 0.999},
            "full": False,
            "data_sha256": "0123456789abcdef" * 4,
        },
    }
    values["features"]["pixels"] |= {"quantisation": "8 bits", "resolution": "97x97"}
    values["features"]["classifier"] |= {"weights_sha256": "fedcba9876543210" * 4}
    write_report(write(tmp_path / "report", values))
    text = text_of((tmp_path / "report" / "report.html").read_text())
    for part in (
        "Samples 5,000 of seed 7, networks in bf16, compiled",
        "Compared with digits, 1,797 of 1x8x8, split test; SHA-256 0123456789ab ",
        "weights decay 0.999",
        "Features: pixel 97x97; 8 bits",
        "Features: classifier SHA-256 fedcba987654",
    ):
        assert part in text, part


def test_numbers_carry_units_thousands_and_three_digits(made: Path) -> None:
    text = text_of((made / "report.html").read_text())
    for part in (
        "on 5,000 samples, against the 1,797 real items of digits",
        "Time per sample, student 0.100 ms",
        "Time of DDIM with 16 evaluations, in multiples of the student&rsquo;s 11.2 &times;",
        "same noise (values span &minus;1 to 1) 0.400",
        "held-out accuracy is 98.5 % (seed 0)",
        "act on the first 2, which hold 99.0 % of the power shown",
        "32,768, each solved by DPM-Solver++(2M) in 12 steps (12 evaluations)",
        "t = 0.5625; 0",
        "Duration, teacher 1 min 2 s Duration, collect 48.3 s Duration, train 1 h 11 min",
        "Parameters, student 190,593",
        "DPM-Solver++(2M), 24 uniform steps",
    ):
        assert part in text


def test_table_lists_every_sampler_student_first_then_by_method_spacing_and_evaluations(
    made: Path,
) -> None:
    html = (made / "report.html").read_text()
    first, second = re.findall(r"(?s)<tbody>.*?</tbody>", html[html.index("All samplers") :])[:2]
    assert cells(first) == [
        "DSNO (student)|–|1|3.90 ± 0.38|0.390 ± 0.038|0.400|0.100|0.700",
        "DDIM|uniform|1|1,610 ± 160|161 ± 16|0.400|0.100|0.700",
        "DDIM|uniform|16|4.50|0.450|0.0250|1.60|11.2",
        "DDIM|uniform|32|2.60|0.260|0.0125|3.20|22.4",
        "DDIM|quadratic|16|5.60|0.560|–|1.60|11.2",
        "DPM-Solver++(2M)|uniform|16|1.80 ± 0.18|0.180 ± 0.018|0.0250|1.60|11.2",
    ]
    assert cells(second)[:3] == [
        "DSNO (student)|–|1|0.0390 ± 0.0038|0.750|0.625|6.00 ± 0.59",
        "DDIM|uniform|1|16.1 ± 1.6|0.250|0.000|2.00 ± 0.2",
        "DDIM|uniform|16|–|–|–|–",
    ]


def cells(table: str) -> list[str]:
    """The cells of a table's rows, with bars between them."""
    rows = re.findall(r"(?s)<tr.*?</tr>", table)
    return [re.sub(r"<.*?>", "", "|".join(re.findall(r"<t[hd].*?>(.*?)</t", r))) for r in rows]


def test_the_first_screen_has_the_intervals_and_what_the_student_is_worth(made: Path) -> None:
    html = (made / "report.html").read_text()
    first = text_of(html[: html.index("<h2>Samples")])
    for part in (
        "student, one evaluation 3.90 ± 0.38",
        "DDIM, 16 evaluations 4.50 Frechet",  # its error is not known
        "Evaluations of the teacher by DDIM with the student&rsquo;s distance 19 ",
        "by DPM-Solver++(2M) with the student&rsquo;s distance &lt; 16 ",
        "by UniPC with the student&rsquo;s distance ≥ 8 ",
        "real data among the samples 0.750, 0.625",
        "&plusmn; is half of a 95 % interval",
    ):
        assert part in first


def test_a_record_of_an_earlier_version_is_still_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_drawing(monkeypatch)
    metrics = example()
    del metrics["step_equivalence"]
    for row in metrics["samplers"]:
        for name in measured(1, 1, 1):
            row.pop(name, None)
    text = text_of(write_report(write(tmp_path, metrics)).read_text())
    assert "student, one evaluation 3.90 Frechet" in text
    for absent in ("±", "&plusmn;", "Kernel", "recall", "Evaluations of the teacher"):
        assert absent not in text


def test_a_reference_known_by_its_statistics_has_no_halves_and_no_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_drawing(monkeypatch)
    metrics, arrays = example(), example_arrays()
    del metrics["reference"]["split_half_distance"], arrays["real"]
    folder = write(tmp_path, metrics, arrays)
    text = text_of(write_report(folder).read_text())
    assert "two halves" not in text
    assert "Student, one evaluation." in text
    assert {path.stem for path in (folder / "figures").iterdir()} == (FIGURES | PLOTS) - {"real"}


def test_intervals_are_drawn_as_bars_of_their_length() -> None:
    """DDIM's alone are blue; two Heun rows hold the axis from 1 to 100."""
    others = [sampler("heun", "Heun", nfe, distance) for nfe, distance in ((1, 100.0), (4, 1.0))]

    def height(error: float) -> int:
        row = sampler("ddim", "DDIM", 2, 10.0, frechet_error={"classifier": error})
        picture = figures.quality([row, *others], {"classifier": 0}, by="nfe")
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        panel = pixels[: len(pixels) * 4 // 5]  # without the legend
        return int((np.abs(panel - [0x00, 0x72, 0xB2]).sum(2) < 40).any(1).sum())

    short = height(2)
    scale = height(4) / short  # from 2.16 to 17.84, and from 6.08 to 13.92: 2.11 to 0.83
    assert scale == pytest.approx(math.log(17.84 / 2.16) / math.log(13.92 / 6.08), rel=0.1)
    assert height(0.01) < short / 2


@pytest.mark.parametrize(
    ("student", "sentence", "told"),
    [
        (
            3.9,
            "The one-step student beats DDIM with 16 evaluations on a uniform grid.",
            "DPM-Solver++(2M) with 16",
        ),
        (
            4.5,
            "The one-step student equals DDIM with 16 evaluations on a uniform grid.",
            "DPM-Solver++(2M) with 16",
        ),
        (
            9.0,
            "The one-step student does not beat DDIM with 16 evaluations on a uniform grid.",
            "9.00",
        ),
        (
            1.2,
            "The one-step student beats DDIM",
            "the nearest is DPM-Solver++(2M) with 16 evaluations (1.80).",
        ),
    ],
)
def test_verdict_says_who_won_and_what_is_better_still(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    student: float,
    sentence: str,
    told: str,
) -> None:
    without_drawing(monkeypatch)
    metrics = example()
    metrics["verdict"]["student"] = student
    metrics["samplers"][-1]["frechet_distance"]["classifier"] = student
    text = text_of(write_report(write(tmp_path, metrics)).read_text())
    assert sentence in text
    assert told in text
    if student > 1.8:
        assert "No solver of the teacher" not in text
        assert "The lowest distance measured: DPM-Solver++(2M) with 16 evaluations (1.80)." in text


def test_further_steps_of_the_teacher_are_told_apart_from_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_drawing(monkeypatch)
    metrics, label = example(), "DSNO, then its teacher"
    for nfe, distance in ((3, 3.1), (2, 3.5)):
        row = sampler("dsno", label, nfe, distance, spacing="from t = 0.125")
        metrics["samplers"].insert(0, row)
    html = write_report(write(tmp_path, metrics)).read_text()
    text = text_of(html)
    assert (
        "s solver goes on from t = 0.125 of its trajectory, it is 3.50 with "
        "2 evaluations and 3.10 with 3 evaluations in all."
    ) in text
    assert "In one evaluation its Frechet distance (classifier features) to the real data" in text
    assert "DSNO (student) – 1 3.90" in text
    assert "DSNO, then its teacher from t = 0.125 2 3.50" in text


def test_the_precision_of_the_trajectories_is_said_unless_it_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_drawing(monkeypatch)
    metrics = example()
    metrics["trajectories"]["precision"] = "bf16"
    text = text_of(write_report(write(tmp_path, metrics)).read_text())
    assert "in 12 steps (12 evaluations in bf16) Times learnt" in text


def test_text_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_drawing(monkeypatch)
    metrics, evil = example(), "<script>alert('1')</script>\"&"
    metrics |= {
        "name": evil,
        "title": evil,
        "command": evil,
        "recipe": {"name": evil, evil: [evil]},
    }
    metrics["environment"] = {evil: evil}
    metrics["reference"]["name"] = evil
    for row in metrics["samplers"]:
        row["label"] = evil
    html = write_report(write(tmp_path, metrics)).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;1&#39;)") >= 6
    assert "script" not in {tag for tag, _ in Tags(html).found}


def test_samples_that_are_not_images_leave_their_sections_out(tmp_path: Path) -> None:
    metrics = example() | {"teacher_history": [], "spectrum": None, "paired_reference": None}
    folder = write(tmp_path / "report", metrics, {"trajectory_times": torch.tensor([1.0, 0.0])})
    html = write_report(folder).read_text()
    assert {path.stem for path in (folder / "figures").iterdir()} == {"quality", "time", "losses"}
    assert "<h2>Samples" not in html
    assert "<h2>Trajectories" not in html


@pytest.mark.parametrize(("channels", "side"), [(2, 8), (3, 32), (4, 96)])
def test_colour_images_of_any_size_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, side: int
) -> None:
    with monkeypatch.context() as patch:
        without_drawing(patch)
        arrays = {
            name: torch.zeros(20, channels, side, side) for name in (report.REAL, *report.SAMPLES)
        }
        write_report(write(tmp_path, example(), arrays))
    with Image.open(tmp_path / "figures" / "student.png") as image:
        assert len(image.getbands()) == channels
        assert min(image.size) >= 3 * 96
    states = torch.zeros(1, 2, channels, 8, 8)
    picture = figures.trajectories([1.0, 0.0], states, states, [0.0])
    assert picture.mode == "RGB"


def lose(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda metrics: metrics.pop(key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lose("samplers"), "samplers"),
        (lose("verdict"), "verdict"),
        (lambda m: m["samplers"][2].update(nfe="many"), "samplers.2.nfe"),
        (lambda m: m["samplers"][2].update(nfe=0), "samplers.2.nfe"),
        (lambda m: m["samplers"][0].update(seconds_per_sample=float("nan")), "seconds_per_sample"),
        (lambda m: m["samplers"][0]["frechet_distance"].pop("pixels"), "features"),
        (lambda m: m["verdict"].update(features="inception"), "features"),
        (lambda m: m["samplers"].pop(), "dsno"),
        (lambda m: m["trained_times"].append(0.1), "trained_times"),
        (lambda m: m["spectrum"]["power"].pop(), "spectrum"),
    ],
)
def test_malformed_metrics_are_named_in_one_sentence(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    metrics = example()
    change(metrics)
    refused(write(tmp_path, metrics), "metrics.json", said)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\xff"])
def test_metrics_that_are_not_a_json_object_are_refused(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path, example())
    (folder / "metrics.json").write_bytes(content.encode("latin-1"))
    refused(folder, "metrics.json", "metrics file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": None}, "'student' is missing"),
        ({"trajectory_times": None}, "'trajectory_times'"),
        ({"trajectory_times": torch.zeros(4)}, "'trajectory_times'"),
        ({"teacher_trajectory": None}, "'teacher_trajectory' is missing"),
        ({"real": torch.zeros(8, 8, 8)}, "'real'"),
        ({"real": torch.zeros(8, 5, 8, 8)}, "'real'"),
        ({"ddim": torch.zeros(8, 1, 8, 9)}, "'ddim'"),
        ({"teacher": torch.zeros(7, 1, 8, 8)}, "'teacher'"),
        ({"student": torch.full((8, 1, 8, 8), float("nan"))}, "'student' holds NaN"),
    ],
)
def test_malformed_arrays_are_named_in_one_sentence(
    tmp_path: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    arrays = {k: v for k, v in (example_arrays() | change).items() if v is not None}
    refused(write(tmp_path, example(), arrays), "arrays.safetensors", said)


def test_cut_off_arrays_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, example()) / "arrays.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(tmp_path, "arrays.safetensors", "cannot be read")


@pytest.mark.parametrize("name", ["metrics.json", "arrays.safetensors"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write(tmp_path, example()) / name).unlink()
    refused(tmp_path, name, "There is no")


def refused(folder: Path, name: str, said: str) -> None:
    """The error names the file, the reason and the remedy, and nothing was written."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as error:
        write_report(folder)
    message = str(error.value)
    assert str(folder / name) in message
    assert said in message
    assert message.endswith("; run `dsno evaluate` again.")
    assert "\n" not in message
    assert sorted(folder.rglob("*")) == before


def test_interrupted_writing_keeps_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_drawing(monkeypatch)
    folder = write(tmp_path, example())
    (folder / "report.html").write_text("old")

    def fail(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text[:10].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == b"old"
    assert not list(folder.rglob("*tmp*"))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0"),
        (1611.4, "1,610"),
        (999.7, "1,000"),
        (242.0, "242"),
        (42.25, "42.2"),
        (3.9, "3.90"),
        (0.05519, "0.0552"),
        (1.23456e-5, "1.23e-05"),
        (-4.5, "-4.50"),
    ],
)
def test_numbers_have_three_significant_digits(x: float, text: str) -> None:
    assert wording.number(x) == text


def test_trajectory_figure_sets_solver_over_student_column_by_column() -> None:
    """Brightness of each cell's centre: the solver's rows rise with t, the student's are black."""
    levels = torch.linspace(-1, 1, 3).reshape(1, 3, 1, 1, 1)
    solver = levels.expand(2, 3, 1, 8, 8)
    picture = figures.trajectories([1.0, 0.5, 0.0], solver, torch.full_like(solver, -1), [0.0])
    dpi, pixels = figures.STYLE["figure.dpi"], np.asarray(picture.convert("L"))
    rows = [0.34 + 0.46 + i * 0.97 + i // 2 * 0.2 for i in range(4)]
    columns = [0.82 + 0.46 + j * 0.97 for j in range(3)]
    seen = [[int(pixels[round(dpi * y), round(dpi * x)]) for x in columns] for y in rows]
    assert seen == [[0, 128, 255], [0, 0, 0]] * 2


def test_inputs_are_only_read(made: Path) -> None:
    assert json.loads((made / "metrics.json").read_text()) == example()
    arrays, expected = load_file(made / "arrays.safetensors"), example_arrays()
    assert arrays.keys() == expected.keys()
    assert all(torch.equal(arrays[name], expected[name]) for name in arrays)
