"""Pictures, captions and their escaping."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.app import figures
from dsno.app.served import Drawing, Film, ServedModel

IMAGES = torch.linspace(-1, 1, 5 * 3 * 4 * 4).reshape(5, 3, 4, 4)


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_drawing_says_what_it_took_and_can_be_saved() -> None:
    html = figures.drawing("Student", Drawing(IMAGES, 0.01234, 1), "a-0.png")
    assert "1 network evaluation each, 12.3 ms for 5 images" in html
    (link,) = re.findall(r'<a href="([^"]+)" download="a-0.png">', html)
    assert f'<img src="{link}"' in html
    (picture,) = pictures(html)
    assert picture.mode == "RGB"
    assert picture.size == (688, 450)  # 3 x 2 images of 4 x 53 pixels, with gaps of 26


def test_the_pixels_of_a_picture_are_those_of_its_images() -> None:
    (picture,) = pictures(figures.drawing("Student", Drawing(IMAGES, 1, 1), "a.png", columns=5))
    scale, gap = 32, 16  # 640 pixels for 5 images of 4
    array = np.asarray(picture)
    assert array.shape == (4 * scale, 5 * (4 * scale + gap) - gap, 3)
    for i in range(5):
        corner = array[0, i * (4 * scale + gap)]
        expected = ((IMAGES[i, :, 0, 0].numpy() + 1) * 127.5).round()
        assert corner.tolist() == expected.tolist()


def test_a_film_shows_one_state_and_the_slider_knows_all() -> None:
    frames = [IMAGES, IMAGES / 2, IMAGES / 4]
    html = figures.film("Trajectory", Film([1.0, 0.25, 0.0], frames, 2.0, 1), "a.png")
    assert "3 states of 5 images from 1 network evaluation, 2.00 s" in html
    assert re.findall(r'data-time="([^"]+)"', html) == ["1", "0.25", "0"]
    assert len(re.findall(r"<img[^>]* hidden>", html)) == 2
    assert '<input type="range" min="0" max="2" value="2" step="1"' in html
    assert len(pictures(html)) == 3


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0000123, "0.01 ms"),
        (0.00321, "3.21 ms"),
        (0.0456, "45.6 ms"),
        (0.6789, "679 ms"),
        (1.5, "1.50 s"),
        (12.34, "12.3 s"),
        (1234.5, "1,234 s"),
        (0, "0 ms"),
    ],
)
def test_times_have_three_figures(seconds: float, words: str) -> None:
    assert figures.took(seconds) == words


def test_one_image_is_one() -> None:
    html = figures.drawing("Teacher", Drawing(IMAGES[:1], 1, 16), "a.png")
    assert "16 network evaluations, 1.00 s for 1 image<" in html.replace(" <a", "<a")


@pytest.mark.parametrize(
    ("width", "most", "count"), [(8, 64, 64), (16, 64, 64), (32, 64, 16), (512, 64, 4), (8, 10, 10)]
)
def test_the_first_grid_shows_fewer_of_large_images(width: int, most: int, count: int) -> None:
    assert figures.first_count(width, most) == count


def test_text_is_escaped(served: ServedModel) -> None:
    assert "<h1>tiny &lt;model&gt;</h1>" in figures.header(served)
    assert "&lt;b&gt;" in figures.alert("<b>")
    html = figures.drawing("<b>", Drawing(IMAGES, 1, 1), '"><b>')
    assert "<b>" not in html


def test_the_header_says_what_the_model_is(served: ServedModel) -> None:
    facts = figures.facts_of(served)
    assert facts[0] == "8×8 pixels, grey"
    assert facts[2:] == ["3 classes", "guidance 1 to 5", "with its teacher"]


def test_small_images_are_enlarged_without_smoothing() -> None:
    small = figures.drawing("a", Drawing(IMAGES, 1, 1), "a.png")
    large = figures.drawing("a", Drawing(torch.zeros(1, 1, 200, 200), 1, 1), "a.png")
    assert "dsno-pixels" in small
    assert "dsno-pixels" not in large
