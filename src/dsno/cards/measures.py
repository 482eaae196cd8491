"""What was measured of a model, as tables and sentences, with the protocol that decides them."""

from __future__ import annotations

from collections.abc import Iterable

from dsno.cards.markdown import code, folded, named, plain, table
from dsno.evaluation.features import distance_name, singular
from dsno.evaluation.metrics import Metrics, SamplerRecord
from dsno.evaluation.samplers import SAMPLER_NAMES, STUDENT, UNFINISHED
from dsno.evaluation.wording import deciding, interval, number, share, symbol, verdict

OWN = (STUDENT, UNFINISHED)


def measured(metrics: Metrics, row: str) -> str:
    """The section of what was measured.

    Args:
        metrics: the evaluation.
        row: name of this model's rows in it.
    """
    mine, others = _chosen(metrics, row)
    texts = []
    if row == STUDENT:
        sentence, _ = verdict(metrics)
        texts.append(f"**{sentence}**")
    texts.append(_table(metrics, [*mine, *others], row))
    spaces, shares = metrics.feature_names(), ""
    if _shares(metrics.samplers, spaces[0]):
        of = f" (of {plain(singular(spaces[0]))} features)" if len(spaces) > 1 else ""
        shares = f" and higher precision and recall{of}"
    notes = [f"Lower distances{shares} are better."]
    if metrics.samplers[0].frechet_error:
        notes.append("± is half of a 95 % interval over draws of as many samples.")
    left = [one for one in metrics.samplers if one not in mine and one not in others]
    if left:
        notes.append(
            "Of each of the teacher's solvers the row of the lowest distance is here, and DDIM's "
            "of the verdict; all are below."
        )
    texts.append(" ".join([*notes, *_floor(metrics)]))
    if row == STUDENT and (found := metrics.equivalences()):
        worth = ", ".join(f"{SAMPLER_NAMES[one.solver]} {symbol(one.text)}" for one in found)
        texts.append(
            "Evaluations with which the teacher's solvers have this model's distance in "
            f"{plain(singular(metrics.verdict.features))} features: {worth}."
        )
    texts.append(f"The protocol:\n\n{named(_protocol(metrics))}")
    if left:
        every = sorted(metrics.samplers, key=lambda one: (one.nfe, one.name))
        texts.append(folded("All samplers that were measured", _table(metrics, every, row)))
    return "\n\n".join(texts)


def _chosen(metrics: Metrics, row: str) -> tuple[list[SamplerRecord], list[SamplerRecord]]:
    """This model's rows, and of each of the teacher's solvers the one with the lowest distance.

    DDIM's with the evaluations of the verdict is added.
    """
    space = metrics.verdict.features
    mine = [one for one in metrics.samplers if one.name == row]
    best = dict[str, SamplerRecord]()
    for one in metrics.samplers:
        if one.name not in OWN:
            known = best.get(one.name)
            if known is None or one.frechet_distance[space] < known.frechet_distance[space]:
                best[one.name] = one
    verdict_row = [
        one
        for one in metrics.samplers
        if one.name == "ddim"
        and one.nfe == metrics.verdict.ddim_nfe
        and one.spacing == "uniform"
        and one is not best.get("ddim")
    ]
    return mine, sorted([*best.values(), *verdict_row], key=lambda one: one.nfe)


def _table(metrics: Metrics, rows: Iterable[SamplerRecord], row: str) -> str:
    rows, spaces = list(rows), metrics.feature_names()
    first = spaces[0]
    head = ["Sampler", "Evaluations", *(_title(space) for space in spaces)]
    shares = _shares(rows, first)
    head += [name.capitalize() for name in shares]
    lines = []
    for one in rows:
        cells = [_name(one, row), f"{one.nfe:,}", *(interval(one.frechet(s)) for s in spaces)]
        for name in shares:
            found = getattr(one, name).get(first)
            cells.append("" if found is None else share(found))
        lines.append([f"**{cell}**" if _is_this(one, row) and cell else cell for cell in cells])
    return table(head, lines)


def _shares(rows: Iterable[SamplerRecord], space: str) -> list[str]:
    """Which of precision and recall are known."""
    rows = list(rows)
    return [n for n in ("precision", "recall") if any(space in getattr(one, n) for one in rows)]


def _title(space: str) -> str:
    return f"{distance_name(space)} ({plain(singular(space))} features)"


def _is_this(one: SamplerRecord, row: str) -> bool:
    return one.name == row and one.spacing is None


def _name(one: SamplerRecord, row: str) -> str:
    if _is_this(one, row):
        return "This model"
    if one.name == row:
        return f"This model, then its teacher {plain(one.spacing or '')}"
    if one.name in OWN:
        after = "after" if row == UNFINISHED else "before"
        more = "" if one.spacing is None else f", then its teacher {plain(one.spacing)}"
        return f"This model {after} its finish{more}"
    steps = f", {plain(one.spacing)} steps" if one.spacing not in (None, "uniform") else ""
    return f"Teacher by {plain(one.label)}{steps}"


def _floor(metrics: Metrics) -> list[str]:
    """The distance between halves of the reference, as a scale."""
    found = metrics.reference.split_half_distance
    parts = [
        f"{number(found[space])} in {plain(singular(space))} features"
        for space in metrics.feature_names()
        if space in found
    ]
    if not parts:
        return []
    return [
        f"Between two halves of the {metrics.reference.what}, which hold fewer items than were "
        f"sampled, the distance is {' and '.join(parts)}."
    ]


def _protocol(metrics: Metrics) -> list[tuple[str, str]]:
    features = {f"Features: {singular(name)}": name for name in metrics.feature_names()}
    lines = deciding(metrics)
    found = [(plain(name), plain(text)) for name, text in lines if name not in features]
    known = {features[name]: text for name, text in lines if name in features}
    for name in metrics.feature_names():
        space = metrics.features[name]
        texts = [f"{space.dimension:,} numbers per sample"]
        if space.held_out_accuracy is not None:
            accuracy = 100 * space.held_out_accuracy
            texts[0] += f" of a classifier of the data, {accuracy:.3g} % right on items held out"
        texts += [plain(known[name])] if name in known else []
        if distance_name(name) != "FID":
            texts.append("no FID, and not to be compared with one")
        title = plain(singular(name))
        found.append((f"{title[0].upper()}{title[1:]} features", "; ".join(texts)))
    about = metrics.environment
    versions = [f"{name} {about[name]}" for name in ("dsno", "torch", "diffusers") if name in about]
    device = [f"on {about['device']}"] if "device" in about else []
    date = [str(about["date"])] if "date" in about else []
    found.append(("Measured with", plain(", ".join([*versions, *device, *date]))))
    found.append(("Command", code(metrics.command)))
    return found


def seconds(metrics: Metrics, row: str) -> str:
    """What a sample took, where that was measured."""
    about, taken = metrics.environment, metrics.of_one_step(row).seconds_per_sample
    text = f"{number(1000 * taken)} ms"
    if "device" in about:
        text += f" on {plain(str(about['device']))}"
    if "threads" in about and str(about.get("device")) == "cpu":
        count = plain(str(about["threads"]))
        text += f" with {count} thread{'' if count == '1' else 's'}"
    return text if metrics.batch_size is None else f"{text}, in batches of {metrics.batch_size:,}"
