"""`cnnviz view` makes, or refreshes, a page over the looks of records; `cnnviz bundle` one file of some looks."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.files import write_file
from lightning_cnnviz.record.store import Record, RecordedLook
from lightning_cnnviz.report import Report, Table
from lightning_cnnviz.sinks.page import PageSink

__all__ = ["bundle_main", "show_looks", "view_main"]


def show_looks(
    looks: Iterable[RecordedLook], page: PageSink, *, layers: Sequence[str] | None = None
) -> Iterator[tuple[RecordedLook, str]]:
    """Draw every look that a page does not have yet, and put it there; runs stand side by side.

    Args:
        looks: Of one record or several.
        page: Where they go.
        layers: Of what is about a layer, only what is about these; by default everything.

    Yields:
        Each look that was new, and what is wrong with it: "" where it is on the page now.

    Raises:
        OSError: The page cannot be written.
        ValueError: At the end: no look had one of the layers (with the closest names).
    """
    met, looks = set[str](), list(looks)
    newest = {look.identity.series: look for look in looks}
    for look in looks:
        identity = look.identity
        source = f"{identity.view}/{identity.name}" if identity.name else identity.view
        if page.shows(source, identity.step):
            continue
        try:
            last = look.last_report() if newest[identity.series] is look else None  # what a run shows at its end
            reports = [look.report(), *([] if last is None else [last])]
        except ValueError as error:
            yield look, str(error)
            continue
        for report in reports:
            met |= {each.layer for each in (*report.items, *report.facts) if not isinstance(each, Table)}
            page.write(report if layers is None else _about(report, layers), identity.step)
        yield look, ""
    for layer in layers or ():
        if layer not in met:
            names = sorted(met - {""})
            raise ValueError(
                f"no look is of a layer '{layer}'. {suggestion(layer, names) or f'There are {names[:12]}'}"
            )


def _about(report: Report, layers: Sequence[str]) -> Report:
    """What a report has on these layers, and on none."""
    kept = {"", *layers}
    items = tuple(item for item in report.items if isinstance(item, Table) or item.layer in kept)
    facts = tuple(each for each in report.facts if each.layer in kept or "kind" in each.numbers)
    return replace(report, items=items, facts=facts)


def view_main(arguments: Sequence[str] | None = None) -> int:
    """Make or refresh a page; return 1 where a look could not be shown."""
    parser = argparse.ArgumentParser(
        prog="cnnviz view",
        description="Make a page of all looks of one record, or of several side by side; of a page that is there, add "
        "what it does not have yet. It opens from disk, in any browser. The exit status is 1 where a look is damaged.",
    )
    parser.add_argument(
        "records", type=Path, nargs="+", metavar="RECORD", help="its folder, or that of the page or run it is of"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("cnnviz_view"), metavar="DIR", help="the page's folder, default: %(default)s"
    )
    options = parser.parse_args(arguments)
    page = PageSink(options.out)
    try:
        records = [Record.within(folder) for folder in options.records]
        page.open([], options.out)
        failed = _shown((look for record in records for look in record.looks()), page)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Page, to open in a browser: {page.path.resolve()}")
    return 1 if failed else 0


def bundle_main(arguments: Sequence[str] | None = None) -> int:
    """Write one self-contained file; return 1 where a look could not be shown."""
    parser = argparse.ArgumentParser(
        prog="cnnviz bundle",
        description="Write a page of some looks of a record as one file, to send: it needs nothing beside it. By "
        "default, of each view, stage and run the newest look. The exit status is 1 where a look is damaged.",
    )
    parser.add_argument("record", type=Path, metavar="RECORD", help="its folder, or that of the page or run it is of")
    parser.add_argument("--out", type=Path, default=Path("cnnviz.html"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--view", nargs="+", metavar="VIEW", help="default: all")
    parser.add_argument("--layer", nargs="+", metavar="LAYER", help="default: all")
    parser.add_argument("--stage", nargs="+", metavar="STAGE", help="default: all")
    parser.add_argument("--epoch", type=int, nargs="+", metavar="N", help="default: the newest look of each series")
    options = parser.parse_args(arguments)
    if options.out.is_dir():
        parser.error(f"--out {options.out} is a folder; give a file")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out} cannot be written: {error}")
    try:
        looks = _chosen(Record.within(options.record).looks(), options)
        with tempfile.TemporaryDirectory() as folder:
            page = PageSink(folder)
            failed = _shown(looks, page, options.layer)
            content = page.one_file().encode()
        write_file(options.out, content)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{options.out.resolve()}: {len(content) / 1e6:.1f} MB")
    return 1 if failed else 0


def _shown(looks: Iterable[RecordedLook], page: PageSink, layers: Sequence[str] | None = None) -> int:
    """Show looks, and say each; return how many could not be shown."""
    failed = 0
    for look, problem in show_looks(looks, page, layers=layers):
        identity = look.identity
        print(f"{identity.view}, {identity.stage}, epoch {look.epoch}{f': {problem}' if problem else ''}")
        failed += bool(problem)
    return failed


def _chosen(looks: Sequence[RecordedLook], options: argparse.Namespace) -> list[RecordedLook]:
    """The looks that are asked for.

    Raises:
        ValueError: There is none.
    """
    asked = {"view": options.view, "stage": options.stage, "epoch": options.epoch}
    wanted = {name: values for name, values in asked.items() if values is not None}
    kept = [look for look in looks if all(getattr(look.identity, name) in wanted[name] for name in wanted)]
    if not kept:
        there = {name: sorted({getattr(look.identity, name) for look in looks}) for name in asked}
        raise ValueError(f"no look is of {wanted}; there are {there}" if looks else "the record has no look")
    if options.epoch is None:
        kept = list({look.identity.series: look for look in kept}.values())
    return kept
