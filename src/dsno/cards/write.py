"""A model's card as files: README.md, the facts that it was made of, and the picture in it."""

from __future__ import annotations

from pathlib import Path

from dsno.cards.about import About
from dsno.cards.facts import Known, own_text
from dsno.cards.text import text
from dsno.sampling.folder import CARD, FACTS, PICTURE, weights_checksums
from dsno.support.files import write_json, write_text
from dsno.support.images import save_png

MEASURED = "float32"
"""Type of the weights that an evaluation measures."""


def local_source(folder: Path) -> str:
    """What a card says a folder is loaded by, wherever its reader has put it."""
    return f"path/to/{folder.absolute().name}"


def write_card(
    folder: Path, about: About, known: Known, *, source: str, license: str | None = None
) -> None:
    """Write the card of a model that was just saved.

    A README.md that lacks the mark of this package is somebody's own, and stays.

    Args:
        folder: of the saved pipeline.
        about: the model.
        known: what is known of it.
        source: what to load it by.
        license: of the weights, by the Hub's names; that known already if None.

    Raises:
        WorkError: if a file cannot be written.
    """
    facts = known.facts.model_copy(
        update={
            "weights": weights_checksums(folder),
            "rounded": known.facts.rounded if about.dtype == MEASURED else about.dtype,
            "license": license or known.facts.license,
        }
    )
    own = own_text(folder / CARD)
    if own is None and (folder / CARD).exists():  # what an earlier card showed
        for name in (FACTS, PICTURE):
            (folder / name).unlink(missing_ok=True)
    words = own or known.own_text or text(about, Known(facts, known.picture), source)
    write_text(folder / CARD, words)
    if facts.metrics is not None or facts.license is not None:
        write_json(folder / FACTS, facts.model_dump(mode="json", exclude_none=True))
    if known.picture is not None:
        save_png(known.picture, folder / PICTURE)
