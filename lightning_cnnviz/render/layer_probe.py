"""Linear probes as a report: accuracy against depth, and the table behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_cnnviz.core.probing.online import OnlineScores
from lightning_cnnviz.core.probing.probe import LayerProbe, ProbeScores
from lightning_cnnviz.report import Curve, Item, Number, Report, Scalar, Series, Table

__all__ = ["layer_probe_report", "online_probe_report"]

_HEADS = {"svm": "SVM", "softmax": "softmax", "knn": "kNN"}


def layer_probe_report(result: LayerProbe) -> Report:
    """Draw test accuracy against depth, one line a head with a band of one standard deviation over splits.

    The same of a network with random weights stands beside it where there is one, and what a paper printed for the
    protocol. Scalars are accuracies, 0 to 1; table and chart are in percent.
    """
    first = result.scores[0]
    items: list[Item] = [_curve(result), _table(result)]
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
    accuracy = [100 * value for value in result.accuracy.tolist()]
    curve = Curve(
        "accuracy by depth",
        (Series("softmax, learned online", x=depth, y=tuple(accuracy)), _chance(depth, result.classes)),
        x_label="layer, in order of depth",
        y_label="accuracy in %",
        caption=f"Learned along with the network, {result.classes} classes",
        x_names=result.layers,
    )
    rows = tuple((layer, round(value, 2)) for layer, value in zip(result.layers, accuracy, strict=True))
    table = Table(
        "accuracy",
        ("layer", "accuracy in %"),
        rows,
        caption=f"Accuracy over {result.images:,} images that no probe has learned from",
    )
    scalars = [
        Scalar(f"{layer}/accuracy", value / 100, layer=layer)
        for layer, value in zip(result.layers, accuracy, strict=True)
    ]
    notes = [
        "Each probe is a softmax layer that learns from a layer's features as training passes by; the network learns "
        "nothing from it.",
        f"Learned from {result.batches:,} training batches, tested on {result.images:,} images.",
    ]
    lost = [
        f"{count:,} at {layer}" for layer, count in zip(result.layers, result.left_out.tolist(), strict=True) if count
    ]
    strange = [layer for layer, value in zip(result.layers, accuracy, strict=True) if math.isnan(value)]
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
    return Curve(
        "accuracy by depth",
        (*series, _chance(depth, first.classes)),
        x_label="layer, in order of depth",
        y_label="mean accuracy of the classes in %" if first.protocol.average == "class" else "test accuracy in %",
        caption=_learned(result),
        x_names=tuple(scores.layer for scores in result.scores),
    )


def _series(name: str, scores: Sequence[ProbeScores], head: str, depth: tuple[float, ...]) -> Series:
    means = [100 * one.mean(head) for one in scores]
    spreads = [100 * one.std(head) for one in scores]
    if all(math.isnan(spread) for spread in spreads):
        return Series(name, x=depth, y=tuple(means))
    low = tuple(mean - spread for mean, spread in zip(means, spreads, strict=True))
    high = tuple(mean + spread for mean, spread in zip(means, spreads, strict=True))
    return Series(name, x=depth, y=tuple(means), low=low, high=high)


def _chance(depth: tuple[float, ...], classes: int) -> Series:
    return Series("chance", x=depth, y=(100 / classes,) * len(depth), reference=True)


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
    return Table("accuracy", tuple(columns), tuple(rows), caption=f"{_learned(result)}: mean and std over splits")


def _columns(every: Sequence[ProbeScores], name: str) -> list[str]:
    """A column a head, and one for its spread where there are several splits."""
    columns = []
    for head in every[0].heads:
        columns.append(f"{name.format(head=head)} in %")
        if _spreads(every, head):
            columns.append(f"std of {name.format(head=head)}")
    return columns


def _figures(scores: ProbeScores, every: Sequence[ProbeScores]) -> list[Number | None]:
    """The cells of `_columns`, in percent; None where something is not finite."""
    values: list[float] = []
    for head in scores.heads:
        values += [scores.mean(head), scores.std(head)] if _spreads(every, head) else [scores.mean(head)]
    return [round(100 * value, 2) if math.isfinite(value) else None for value in values]


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
        "Classifiers on the fixed features of a layer; C and scaling are chosen on training images alone.",
        f"Splits {first.digest[:16]} (seed {protocol.seed}): equal numbers stand for the same images. Scaling: "
        f'"{protocol.scaling}"; C from {", ".join(f"{value:g}" for value in protocol.Cs)}.',
    ]
    if train:
        notes.append(f"Features of {train:,} images" + (f" to learn from and {test:,} to test on." if test else "."))
    if result.control is not None:
        notes.append("Random weights: the same network, all layers initialized anew.")
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
