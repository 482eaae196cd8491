"""What the page shows: pictures with what they took, as HTML that needs no file and no server.

Pictures are part of the page (data URLs), so that nothing is written to the server's disk and none
can be seen by somebody else's browser. All text is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import math

from torch import Tensor

from dsno.app.served import Drawing, Film, ServedModel
from dsno.support.images import grid

GRID_PIXELS = 640
"""About how wide a grid of small images is made: each pixel becomes a square of whole pixels."""
NO_TEACHER = (
    "This model was saved without its teacher. Serve a run's folder, or write the model with its "
    "teacher by <code>dsno export RUN --out FOLDER</code>."
)


def header(model: ServedModel) -> str:
    """What is served."""
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts_of(model))
    return (
        f'<header class="dsno-header"><h1>{html.escape(model.name)}</h1>'
        "<p>A neural operator draws each image in one evaluation of its network. Its teacher, the "
        "diffusion model it was made from, takes one or more in each of its steps.</p>"
        f"<ul>{facts}</ul></header>"
    )


def facts_of(model: ServedModel) -> list[str]:
    """What a model makes and what it can be asked for, a few words each."""
    channels, height, width = model.image_shape
    kind = {1: "grey", 2: "grey with alpha", 3: "colour", 4: "colour with alpha"}[channels]
    weights = sum(p.numel() for p in model.pipeline.model.parameters())
    facts = [f"{width}×{height} pixels, {kind}", f"{_short(weights)} parameters"]
    offer = model.offer
    if offer.classes is not None:
        facts.append(f"{offer.classes:,} class{'es' * (offer.classes != 1)}")
    if offer.guidance is not None:
        facts.append("guidance {:g} to {:g}".format(*offer.guidance))
    if model.fixed_guidance is not None:
        facts.append(f"guidance {model.fixed_guidance:g} distilled in")
    if offer.is_textual:
        facts.append("draws what a prompt says")
    facts.append("with its teacher" if offer.has_teacher else "without its teacher")
    return facts


def _short(number: int) -> str:
    if number < 1e6:
        return f"{number / 1e3:.0f} thousand"
    return f"{number / 1e6:.1f} million"


def alert(sentence: str) -> str:
    """One sentence about what was wrong."""
    return f'<p class="dsno-alert" role="alert">{html.escape(sentence)}</p>'


def empty(title: str, sentence: str) -> str:
    """The frame of a picture that is not there; the sentence is HTML."""
    return _figure(title, f'<div class="dsno-empty"><p>{sentence}</p></div>', "")


def drawing(title: str, made: Drawing, filename: str, columns: int | None = None) -> str:
    """A grid of samples, with what they took and a link that saves it."""
    picture = _data_url(png(made.images, columns))
    image = f'<img src="{picture}" alt="{html.escape(title)}: {len(made.images):,} images">'
    caption = html.escape(_cost(len(made.images), made.seconds, made.nfe))
    return _figure(title, _pictures(made.images, image), f"{caption}{_link(picture, filename)}")


def film(title: str, made: Film, filename: str) -> str:
    """The states of trajectories, one at a time, with a slider; the sample is shown first."""
    last = len(made.frames) - 1
    pictures = [_data_url(png(frame)) for frame in made.frames]
    images = "".join(
        f'<img src="{picture}" data-time="{time:.3g}" alt="States at t = {time:.3g}"'
        f"{'' if i == last else ' hidden'}>"
        for i, (picture, time) in enumerate(zip(pictures, made.times, strict=True))
    )
    slider = (
        '<label class="dsno-slider"><span>noise</span>'
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" '
        f'aria-label="time of the state" oninput="{_SHOW}">'
        f"<span>sample</span><output>t = {made.times[-1]:.3g}</output></label>"
    )
    count = len(made.frames[0])
    caption = html.escape(_cost(count, made.seconds, made.nfe, states=len(made.frames)))
    link = _link(pictures[last], filename)
    return _figure(title, slider + _pictures(made.frames[0], images), f"{caption}{link}")


_SHOW = (
    "const figure = this.closest('figure'), images = figure.querySelectorAll('img'); "
    "images.forEach((image, i) => image.hidden = i != this.value); "
    "figure.querySelector('output').textContent = 't = ' + images[this.value].dataset.time; "
    "figure.querySelector('a').href = images[this.value].src"
)
"""What the slider does in the browser: show, name and offer for saving the state it stands at."""


def first_count(width: int, most: int) -> int:
    """How many images a grid has at first: a square that shows each at a size to be recognised."""
    side = min(8, max(2, round(128 / width)))
    return min(side * side, most)


def png(images: Tensor, columns: int | None = None) -> bytes:
    """A grid of images (batch, C, H, W), about [-1, 1], as a PNG file."""
    across = columns or math.isqrt(len(images) - 1) + 1
    scale = max(1, round(GRID_PIXELS / (across * images.shape[-1])))
    file = io.BytesIO()
    grid(images, across, scale=scale, gap=max(2, scale // 2)).save(file, format="PNG")
    return file.getvalue()


def took(seconds: float) -> str:
    """A short time with three figures, such as `3.21 ms` or `1.50 s`."""
    value, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(digits, 2)}f} {unit}"


def _cost(count: int, seconds: float, nfe: int, states: int | None = None) -> str:
    evaluations = f"{nfe:,} network evaluation{'s' * (nfe != 1)}"
    images = f"{count:,} image{'s' * (count != 1)}"
    if states is not None:
        return f"{states:,} states of {images} from {evaluations}, {took(seconds)}"
    return f"{evaluations}{' each' * (count != 1)}, {took(seconds)} for {images}"


def _figure(title: str, content: str, caption: str) -> str:
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="dsno-figure"><h2>{html.escape(title)}</h2>{content}{below}</figure>'


def _pictures(images: Tensor, tags: str) -> str:
    """The frame of pictures; small ones are enlarged without smoothing."""
    small = " dsno-pixels" if images.shape[-1] < GRID_PIXELS // 4 else ""
    return f'<div class="dsno-pictures{small}">{tags}</div>'


def _link(picture: str, filename: str) -> str:
    return f' <a href="{picture}" download="{html.escape(filename)}">Download PNG</a>'


def _data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
