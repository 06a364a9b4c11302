"""Linear probes as a report: accuracy, or what is measured in its place, against depth, and the table behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_cnnviz.core.probing.online import OnlineScores
from lightning_cnnviz.core.probing.probe import LayerProbe, ProbeScores
from lightning_cnnviz.core.probing.probed import Measure
from lightning_cnnviz.render.figures import class_label
from lightning_cnnviz.report import Curve, Item, Number, Report, Scalar, Series, Table

__all__ = ["layer_probe_report", "online_probe_report"]

_HEADS = {"svm": "SVM", "softmax": "softmax", "knn": "kNN", "logistic": "logistic regression", "ridge": "ridge"}
_CLASSES_SHOWN = 24  # of label maps, in the table of the accuracy by class


class _Words(NamedTuple):
    """How a measure is written.

    Attributes:
        name: In charts and tables.
        unit: `" in %"`, or nothing.
        factor: What numbers are multiplied by.
    """

    name: str
    unit: str
    factor: float

    def shown(self, value: float) -> float | None:
        """A number of a table; None where it is not finite."""
        return round(self.factor * value, 2 if self.unit else 4) if math.isfinite(value) else None


_WORDS: dict[Measure, _Words] = {
    "accuracy": _Words("accuracy", " in %", 100),
    "mean average precision": _Words("mean average precision", " in %", 100),
    "R2": _Words("R2", "", 1),
}


_ONLINE: dict[Measure, str] = {
    "accuracy": "softmax layer",
    "mean average precision": "logistic layer of each label",
    "R2": "linear layer, by least squares,",
}
_KINDS: dict[Measure, str] = {
    "accuracy": "Classifiers",
    "mean average precision": "Classifiers of each label against the rest",
    "R2": "Ridge regression (alpha = 1 / 2C)",
}


def layer_probe_report(result: LayerProbe, class_names: Sequence[str] | None = None) -> Report:
    """Draw test accuracy against depth, one line a head with a band of one standard deviation over splits.

    Of several labels an image it is mean average precision, of values R2. The same of a network with random weights
    stands beside it where there is one, and what a paper printed for the protocol. Scalars are as measured, accuracies
    0 to 1; table and chart are in percent, but for R2. Of label maps, a table has the accuracy by class.

    Args:
        result: What was measured.
        class_names: Names of the classes.
    """
    first = result.scores[0]
    items: list[Item] = [_curve(result), _table(result), *_by_class(result, class_names)]
    if first.protocol.paper:
        rows = tuple(first.protocol.paper.items())
        items.append(Table("paper", ("source", "accuracy in %"), rows, caption="What was published for this protocol"))
    items += [
        Scalar(f"{scores.layer}/{head}", scores.mean(head), layer=scores.layer)
        for scores in result.scores
        for head in scores.heads
    ]
    return Report("layer_probe", title="What each layer knows", items=tuple(items), notes=_notes(result))


def online_probe_report(result: OnlineScores) -> Report:
    """Draw the accuracy of probes that learn along with the network against depth.

    Scalars are accuracies, 0 to 1; table and chart are in percent.
    """
    depth = tuple(float(place) for place in range(1, len(result.layers) + 1))
    words = _WORDS[result.measure]
    accuracy = [words.factor * value for value in result.accuracy.tolist()]
    told = _told(result.measure, result.classes, result.pixels)
    curve = Curve(
        f"{words.name} by depth",
        (Series("learned online", x=depth, y=tuple(accuracy)), _chance(depth, result)),
        x_label="layer, in order of depth",
        y_label=f"{words.name}{words.unit}",
        caption=f"Learned along with the network, {told}",
        x_names=result.layers,
        percent=bool(words.unit),
    )
    values = dict(zip(result.layers, result.accuracy.tolist(), strict=True))
    rows = tuple((layer, words.shown(value)) for layer, value in values.items())
    what = (f"{result.pixels} pixels of each of " if result.pixels else "") + f"{result.images:,} images"
    table = Table(
        words.name,
        ("layer", f"{words.name}{words.unit}"),
        rows,
        caption=f"{words.name[0].upper()}{words.name[1:]} over {what} that no probe has learned from",
    )
    scalars = [Scalar(f"{layer}/{words.name}", value, layer=layer) for layer, value in values.items()]
    notes = [
        f"Each probe is a {_ONLINE[result.measure]} that learns from a layer's features as training passes by; the "
        "network learns nothing from it.",
        f"Learned from {result.batches:,} training batches, tested on {result.images:,} images.",
    ]
    lost = [
        f"{count:,} at {layer}" for layer, count in zip(result.layers, result.left_out.tolist(), strict=True) if count
    ]
    strange = [layer for layer, value in zip(result.layers, accuracy, strict=True) if math.isnan(value)]
    notes += _of_pixels(result.pixels)
    if strange:
        notes.insert(0, f"Not finite: features of tested images are NaN or infinite at {', '.join(strange)}.")
    if lost:
        notes.append(f"Left out of training, for features that are NaN or infinite: {', '.join(lost)}.")
    return Report(
        "online_probe",
        title="What each layer knows, learned online",
        items=(curve, table, *scalars),
        notes=tuple(notes),
    )


def _curve(result: LayerProbe) -> Curve:
    depth = tuple(float(place) for place in range(1, len(result.scores) + 1))
    series = [_series(_HEADS[head], result.scores, head, depth) for head in result.scores[0].heads]
    if result.control is not None:
        series += [
            _series(f"{_HEADS[head]}, random weights", result.control, head, depth) for head in result.control[0].heads
        ]
    first = result.scores[0]
    words = _WORDS[first.measure]
    y_label = f"test {words.name}{words.unit}"
    if first.measure == "accuracy" and first.protocol.average == "class":
        y_label = "mean accuracy of the classes in %"
    return Curve(
        f"{words.name} by depth",
        (*series, _chance(depth, first)),
        x_label="layer, in order of depth",
        y_label=y_label,
        caption=_learned(result),
        x_names=tuple(scores.layer for scores in result.scores),
        percent=bool(words.unit),
    )


def _series(name: str, scores: Sequence[ProbeScores], head: str, depth: tuple[float, ...]) -> Series:
    factor = _WORDS[scores[0].measure].factor
    means = [factor * one.mean(head) for one in scores]
    spreads = [factor * one.std(head) for one in scores]
    if all(math.isnan(spread) for spread in spreads):
        return Series(name, x=depth, y=tuple(means))
    low = tuple(mean - spread for mean, spread in zip(means, spreads, strict=True))
    high = tuple(mean + spread for mean, spread in zip(means, spreads, strict=True))
    return Series(name, x=depth, y=tuple(means), low=low, high=high)


def _chance(depth: tuple[float, ...], scores: ProbeScores | OnlineScores) -> Series:
    chance = 1 / scores.classes if scores.chance is None else scores.chance
    return Series("chance", x=depth, y=(_WORDS[scores.measure].factor * chance,) * len(depth), reference=True)


def _told(measure: Measure, count: int, pixels: int) -> str:
    """What is told, in words."""
    if measure == "R2":
        return f"{count} value{'s' if count > 1 else ''}"
    if measure == "mean average precision":
        return f"{count} label{'s' if count > 1 else ''}, each from the rest"
    return f"{count} classes of pixels" if pixels else f"{count} classes"


def _of_pixels(pixels: int) -> list[str]:
    if not pixels:
        return []
    return [
        f"Labels are maps: the class is told of {pixels} pixels of each image, of its classes in turn, from the "
        "features of the cell that each lies in; all pixels of an image are learned from, or none."
    ]


def _table(result: LayerProbe) -> Table:
    heads = result.scores[0].heads
    columns = ["layer", "features", *_columns(result.scores, "{head}")]
    columns += [f"C of {head}" for head in heads if head != "knn"]
    if result.control is not None:
        columns += _columns(result.control, "{head}, random weights")
    controls = result.control or (None,) * len(result.scores)
    rows = []
    for scores, control in zip(result.scores, controls, strict=True):
        row: list[Number | None] = [scores.layer, scores.dimensions, *_figures(scores, result.scores)]
        row += [_strengths(scores, head) for head in heads if head != "knn"]
        if control is not None:
            row += _figures(control, result.control or ())
        rows.append(tuple(row))
    name = _WORDS[result.scores[0].measure].name
    return Table(name, tuple(columns), tuple(rows), caption=f"{_learned(result)}: {name}, mean and std over splits")


def _by_class(result: LayerProbe, class_names: Sequence[str] | None) -> list[Table]:
    """Of label maps, the accuracy on the pixels of each class: a line a layer and head."""
    first = result.scores[0]
    shown = first.class_numbers[:_CLASSES_SHOWN]
    if first.class_accuracy is None or not first.pixels:
        return []
    rows = [
        (scores.layer, head, *(_percent(float(values[:, place].nanmean())) for place in range(len(shown))))
        for scores in result.scores
        if scores.class_accuracy is not None
        for head, values in zip(scores.heads, scores.class_accuracy, strict=True)
    ]
    columns = ("layer", "classifier", *(class_label(class_names, number) for number in shown))
    beyond = len(first.class_numbers) - len(shown)
    more = f"; {beyond} more classes are in the result" if beyond else ""
    caption = f"{_learned(result)}: accuracy in % on the pixels of each class, mean over splits{more}"
    return [Table("accuracy by class", columns, tuple(rows), caption=caption)]


def _percent(value: float) -> float | None:
    return _WORDS["accuracy"].shown(value)


def _columns(every: Sequence[ProbeScores], name: str) -> list[str]:
    """A column a head, and one for its spread where there are several splits."""
    columns = []
    for head in every[0].heads:
        columns.append(f"{name.format(head=head)}{_WORDS[every[0].measure].unit}")
        if _spreads(every, head):
            columns.append(f"std of {name.format(head=head)}")
    return columns


def _figures(scores: ProbeScores, every: Sequence[ProbeScores]) -> list[Number | None]:
    """The cells of `_columns`; None where something is not finite."""
    values: list[float] = []
    for head in scores.heads:
        values += [scores.mean(head), scores.std(head)] if _spreads(every, head) else [scores.mean(head)]
    return [_WORDS[scores.measure].shown(value) for value in values]


def _spreads(every: Sequence[ProbeScores], head: str) -> bool:
    return any(not math.isnan(scores.std(head)) for scores in every)


def _strengths(scores: ProbeScores, head: str) -> str:
    values = [value for value in scores.C[scores.heads.index(head)].tolist() if not math.isnan(value)]
    return ", ".join(f"{value:g}" for value in sorted(set(values)))


def _learned(result: LayerProbe) -> str:
    scores = result.scores[0]
    protocol, splits = scores.protocol, scores.accuracy.shape[1]
    own_test = result.images[1] > 0
    whole = "all images" if splits == 1 and own_test else "four fifths of the images"
    many = whole if protocol.per_class is None else f"{protocol.per_class} images"
    times = f", {splits} splits" if splits > 1 else ""
    named = "Learned" if protocol.name == "custom" else f"Protocol {protocol.name}: learned"
    if scores.measure != "accuracy" or scores.pixels:
        return f"{named} from {whole}, {_told(scores.measure, scores.classes, scores.pixels)}{times}"
    return f"{named} from {many} of each of {scores.classes} classes{times}"


def _notes(result: LayerProbe) -> tuple[str, ...]:
    first = result.scores[0]
    protocol = first.protocol
    train, test = result.images
    every = (*result.scores, *(result.control or ()))
    strange = [f"{scores.layer} (image {scores.nonfinite})" for scores in every if scores.nonfinite is not None]
    notes = (
        [f"Not finite: features are NaN or infinite at {', '.join(strange)}: nothing is fitted there."]
        if strange
        else []
    )
    notes += [
        f"{_KINDS[first.measure]} on the fixed features of a layer; C and scaling are chosen on training images alone.",
        f"Splits {first.digest[:16]} (seed {protocol.seed}): equal numbers stand for the same images. Scaling: "
        f'"{protocol.scaling}"; C from {", ".join(f"{value:g}" for value in protocol.Cs)}.',
    ]
    if train:
        notes.append(f"Features of {train:,} images" + (f" to learn from and {test:,} to test on." if test else "."))
    if result.control is not None:
        notes.append("Random weights: the same network, all layers initialized anew.")
    notes += _of_pixels(first.pixels)
    notes += [note for note in (_beyond(every), *(_at_the_end(every, head) for head in first.heads)) if note]
    slow = [scores.layer for scores in every if not bool(scores.converged.all())]
    if slow:
        notes.append(f"The solver did not reach its tolerance at {', '.join(dict.fromkeys(slow))}.")
    return tuple(notes)


def _beyond(every: Sequence[ProbeScores]) -> str:
    """How far beyond the protocol's values C was looked for."""
    given = every[0].protocol.Cs
    tried = [value for scores in every if scores.tried is not None for value in scores.tried.flatten().tolist()]
    reached = [value for value in tried if not math.isnan(value)]
    if not reached or (min(reached) >= min(given) and max(reached) <= max(given)):
        return ""
    return f"C was looked for beyond the ends where the best one was: from {min(reached):g} up to {max(reached):g}."


def _at_the_end(every: Sequence[ProbeScores], head: str) -> str:
    """Of how many fits the best C was still at an end of what was tried."""
    inside = [scores.bracketed[scores.heads.index(head)] for scores in every if scores.bracketed is not None]
    fits, ends = sum(len(row) for row in inside), sum(int((~row).sum()) for row in inside)
    if not ends:
        return ""
    return (
        f"{_HEADS[head]}: the best C was at an end of all that were tried in {ends} of {fits} fits: it may do better "
        "beyond, with another Cs or more extensions of the protocol."
    )
