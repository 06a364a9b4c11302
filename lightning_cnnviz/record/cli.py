"""`cnnviz record` lists and checks a record; `cnnviz export` makes a figure, a page or numbers of one of its looks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.record.figures import ReportFigure
from lightning_cnnviz.record.store import Record, RecordedLook
from lightning_cnnviz.render.tables import NOT_KNOWN, Side, aligned_text

__all__ = ["export_main", "record_main"]

_COLUMNS = ("view", "name", "stage", "data", "images", "looks", "epochs", "size")
_SIDES: tuple[Side, ...] = ("left", "left", "left", "left", "right", "right", "left", "right")


def record_main(arguments: Sequence[str] | None = None) -> int:
    """List what is in a record and check it; return 1 where something is damaged."""
    parser = argparse.ArgumentParser(
        prog="cnnviz record",
        description="List the looks of a record by run and series, with what they take on the disk, and read "
        "everything once to check it. The exit status is 1 where something is damaged.",
    )
    _add_record(parser)
    parser.add_argument(
        "--keep-megabytes",
        type=float,
        metavar="N",
        help="first take looks away until the record is no larger, or only those are left that are always kept: of "
        "each series the first, those after 2, 5, 10, 20, ... times as many steps, and the newest",
    )
    parser.add_argument("--no-check", action="store_true", help="do not read everything")
    options = parser.parse_args(arguments)
    record = _opened(parser, options.record)
    if options.keep_megabytes is not None:
        try:
            print(f"{len(record.thin(options.keep_megabytes))} looks taken away")
        except OSError as error:
            parser.error(str(error))
    looks = record.looks()
    print(f"{record.folder}: {len(looks)} looks, {_bytes(record.size())}")
    for run in dict.fromkeys(look.identity.run for look in looks):
        print("\n" + _printable(_run_text(run, [look for look in looks if look.identity.run == run])))
    if options.no_check:
        return 0
    problems = record.check()
    print("\nEverything can be read." if not problems else f"\nDamaged ({len(problems)}):")
    for problem in problems:
        print(f"- {_printable(problem)}")
    return 1 if problems else 0


def export_main(arguments: Sequence[str] | None = None) -> int:
    """Write one look of a record to files."""
    parser = argparse.ArgumentParser(
        prog="cnnviz export",
        description="Draw one look of a record again, and write it as a figure for paper (.pdf, .svg, .png), a page "
        "(.html) or numbers (.csv).",
    )
    _add_record(parser)
    parser.add_argument("--view", required=True, help="top_patches, deconvnet, ...; cnnviz record lists them")
    parser.add_argument("--to", type=Path, nargs="+", required=True, metavar="FILE", help="one or several; by suffix")
    parser.add_argument("--layer", nargs="+", metavar="LAYER", help="what is about these; default: all layers")
    parser.add_argument("--item", nargs="+", metavar="ITEM", help="single pictures, charts, tables by their names")
    parser.add_argument("--epoch", type=int, metavar="N", help="default: the newest look")
    parser.add_argument("--stage", choices=("fit", "validate", "test"))
    parser.add_argument("--name", help="the monitor's")
    parser.add_argument("--data", help="the data set's class, as cnnviz record lists it")
    parser.add_argument("--run", help="default: the newest run that has such a look")
    parser.add_argument("--width", type=float, default=7.16, metavar="INCHES", help="default: %(default)s")
    parser.add_argument("--dpi", type=int, default=300, help="of what is no line, default: %(default)s")
    parser.add_argument("--no-titles", action="store_true", help="without titles, captions and notes")
    options = parser.parse_args(arguments)
    record = _opened(parser, options.record)
    try:
        look = _chosen(record, options)
        shown = ReportFigure.drawn(look.report)
        items = _items_of(shown, options.layer, options.item)
        for path in options.to:
            shown.save(path, item=items, width=options.width, dpi=options.dpi, titles=not options.no_titles)
            print(f"{_described(look)}: {path}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


def _add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", type=Path, metavar="RECORD", help="its folder, or that of the page or run it is of")


def _opened(parser: argparse.ArgumentParser, folder: Path) -> Record:
    try:
        return Record.within(folder)
    except ValueError as error:
        parser.error(str(error))


# Listing


def _run_text(run: str, looks: Sequence[RecordedLook]) -> str:
    """Describe one run: its network, and a line for each series."""
    network = looks[-1].identity.network
    said = f"{network.type}, {network.parameters:,} parameters" if network.type else "no network"
    first, last = (_minute(look) for look in (looks[0], looks[-1]))
    when = first if first == last else f"{first} to {last}"
    series: dict[tuple[object, ...], list[RecordedLook]] = {}
    for look in looks:
        series.setdefault(look.identity.series, []).append(look)
    table = aligned_text(_COLUMNS, [_series_row(part) for part in series.values()], _SIDES, widest=48)
    return f"run {run or NOT_KNOWN}: {said}, {when} UTC\n{table}"


def _minute(look: RecordedLook) -> str:
    return datetime.fromtimestamp(look.identity.time, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _series_row(looks: Sequence[RecordedLook]) -> tuple[str, ...]:
    identity = looks[-1].identity
    data, images = identity.data.dataset, identity.data.images
    return (
        identity.view,
        identity.name,
        identity.stage,
        data + (f" {identity.data.loader}" if identity.data.loader > 0 else ""),
        "" if images is None else f"{images:,}",
        str(len(looks)),
        ranges(look.epoch for look in looks),
        _bytes(sum(look.bytes for look in looks)),
    )


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers in short.

    Example:
        >>> ranges([1, 2, 3, 5, 10, 11])
        '1-3, 5, 10-11'
    """
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _printable(text: str) -> str:
    """What is read from a file writes to a terminal, and does nothing else to it."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _bytes(count: int) -> str:
    return f"{count:,} B" if count < 1000 else f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


# Choosing


def _chosen(record: Record, options: argparse.Namespace) -> RecordedLook:
    """Find the look that is asked for.

    Raises:
        ValueError: There is none, or looks of several series are meant.
    """
    looks = record.looks()
    for asked, of in _FIELDS.items():
        wanted = getattr(options, asked)
        if wanted is not None:
            there = list(dict.fromkeys(of(look) for look in looks))
            looks = [look for look in looks if of(look) == wanted]
            if not looks:
                raise ValueError(_none_of(asked, wanted, there))
    newest = [look for look in looks if look.identity.run == looks[-1].identity.run]
    for asked, of in _FIELDS.items():
        several = sorted({of(look) for look in newest})
        if asked not in ("epoch", "run") and len(several) > 1:
            raise ValueError(f"which one? --{asked} may be " + ", ".join(f"'{name}'" for name in several))
    return newest[-1]


def _none_of(asked: str, wanted: Any, there: Sequence[Any]) -> str:
    if asked == "epoch":
        return f"there is no look of epoch {wanted}, but of {ranges(there)}"
    listed = ", ".join(f"'{name}'" for name in there) or "none"
    return f"there is no look of --{asked} '{wanted}'.{suggestion(wanted, there, ' ')} There are {listed}"


# What a look may be asked for by; the order in which it is.
_FIELDS: dict[str, Callable[[RecordedLook], Any]] = {
    "view": lambda look: look.identity.view,
    "run": lambda look: look.identity.run,
    "stage": lambda look: look.identity.stage,
    "name": lambda look: look.identity.name,
    "data": lambda look: look.identity.data.dataset,
    "epoch": lambda look: look.epoch,
}


def _items_of(shown: ReportFigure, layers: Sequence[str] | None, items: Sequence[str] | None) -> list[str] | None:
    """The names of the items that are asked for; of a layer, all that begin with its name."""
    if layers is None:
        return None if items is None else list(items)
    names = list(dict.fromkeys(item.name for item in shown.items))
    chosen = list(items or ())
    for layer in layers:
        own = [name for name in names if name == layer or name.startswith(f"{layer}/")]
        if not own:
            question = suggestion(layer, names) or f"There are {', '.join(names[:12])}."
            raise ValueError(f"'{shown.heading}' has nothing that is called by layer '{layer}'. {question}")
        chosen += own
    return chosen


def _described(look: RecordedLook) -> str:
    identity = look.identity
    name = f" '{identity.name}'" if identity.name else ""
    return f"{identity.view}{name}, {identity.stage}, epoch {look.epoch}"
