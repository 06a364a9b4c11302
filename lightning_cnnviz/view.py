"""`cnnviz view` makes, or refreshes, a page over the looks of one record or of several."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_cnnviz.record.store import Record, RecordedLook
from lightning_cnnviz.sinks.page import PageSink

__all__ = ["show_records", "view_main"]

# Where a record lies in the folder of a run, or of a page.
_PLACES = (".", "record", "cnnviz/record")


def show_records(records: Sequence[Record], page: PageSink) -> Iterator[tuple[RecordedLook, str]]:
    """Draw every look that a page does not have yet, and put it there; runs stand side by side.

    Yields:
        Each look that was new, and what is wrong with it: "" where it is on the page now.

    Raises:
        OSError: The page cannot be written.
    """
    for record in records:
        for look in record.looks():
            identity = look.identity
            source = f"{identity.view}/{identity.name}" if identity.name else identity.view
            if page.shows(source, identity.step):
                continue
            try:
                report = look.report()
            except ValueError as error:
                yield look, str(error)
                continue
            page.write(report, identity.step)
            yield look, ""


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
    failed = 0
    try:
        records = [_opened(folder) for folder in options.records]
        page.open([], options.out)
        for look, problem in show_records(records, page):
            identity = look.identity
            print(f"{identity.view}, {identity.stage}, epoch {look.epoch}{f': {problem}' if problem else ''}")
            failed += bool(problem)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Page, to open in a browser: {page.path.resolve()}")
    return 1 if failed else 0


def _opened(folder: Path) -> Record:
    place = next(
        (place for place in _PLACES if (folder / place / "looks").is_dir() and _is_record(folder / place)), None
    )
    if place is None:
        raise ValueError(f"there is no record in {folder}")
    return Record(folder / place)


def _is_record(folder: Path) -> bool:
    """A page has a folder `looks`, too."""
    return (folder / "record.json").is_file()
