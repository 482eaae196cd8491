"""Saving a model with its card, and uploading both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsno.cards.about import About
from dsno.cards.facts import MARK, known_of
from dsno.cards.write import local_source, write_card
from dsno.sampling.folder import CARD
from dsno.support.hub import Upload

if TYPE_CHECKING:
    from dsno.pipeline import DSNOPipeline


def publish(
    pipeline: DSNOPipeline,
    write: Callable[[], None],
    folder: Path,
    hub: Upload | None,
    *,
    license: str | None,
    card: bool,
) -> Any:
    """Write a pipeline's folder and its card, and upload it.

    What can be refused is refused before anything is written. A card on the Hub that is not of this
    package's making is kept.

    Args:
        pipeline: what is published.
        write: its components into the folder.
        folder: where.
        hub: where to upload it; nowhere if None.
        license: of the weights.
        card: whether to write the card.

    Returns:
        The library's `CommitInfo` of the upload, or None.

    Raises:
        InputError: if what is known of the model is damaged, or it cannot be uploaded.
    """
    known = known_of(pipeline.model) if card else None
    source = local_source(folder)
    if hub is not None:
        hub.commit_message = hub.commit_message or f"Upload {type(pipeline).__name__}"
        hub.create()
        source = hub.name
        if known is not None and known.own_text is None:
            there = hub.read_text(CARD)
            if there is not None and MARK not in there:
                known = dataclasses.replace(known, own_text=there)
    write()
    if known is not None:
        write_card(folder, About.of(pipeline), known, source=source, license=license)
    return None if hub is None else hub.send(folder)
