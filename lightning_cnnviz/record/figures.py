"""A report that people can see and take away: shown in a notebook, saved as a figure, a page or numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.files import write_file
from lightning_cnnviz.record._csv import csv_text
from lightning_cnnviz.render.figures import kept_figures
from lightning_cnnviz.render.html import html_page, html_part
from lightning_cnnviz.render.paper.files import pdf_file, png_file, svg_file
from lightning_cnnviz.render.paper.items import item_figures
from lightning_cnnviz.report import (
    Curve,
    Gallery,
    Item,
    LayerFacts,  # noqa: F401 - the type of a field that is inherited
    Picture,
    Report,
    Scalar,
    Table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ReportFigure"]

_PAGE, _ROLL = 9.5, 100.0  # inches: the longest page, and the longest picture that is drawn in one
_NOTEBOOK_ROWS = 32
_LISTED = 12


@dataclass(frozen=True, eq=False, repr=False)
class ReportFigure(Report):
    """A report to look at and to take away; every sink takes it, too.

    At the end of a notebook's cell it is displayed: galleries with captions and numbers, charts, tables and notes, of
    a long gallery or table the first 32 rows. `save` writes it to a file, and `figure` gives a figure of matplotlib.

    Attributes:
        drawings: By a picture's name, the figure of matplotlib that its pixels were drawn from, where there is one.

    Example:
        >>> from lightning_cnnviz.report import Series
        >>> line = Series("SVM", x=(1, 2, 3), y=(0.45, 0.66, 0.72))
        >>> curve = Curve("accuracy", (line,), x_label="layer", y_label="accuracy")
        >>> report = Report("layer_probe", title="Probes", items=(curve, Scalar("best", 0.72)))
        >>> ReportFigure.of(report)
        ReportFigure 'Probes': accuracy (curve), best = 0.72
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ReportFigure.of(report).save(f"{folder}/probes.pdf", item="accuracy").name
        'probes.pdf'
    """

    drawings: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @classmethod
    def of(cls, report: Report, drawings: Mapping[str, Any] | None = None) -> ReportFigure:
        """Make one of any report."""
        return cls(**{part.name: getattr(report, part.name) for part in fields(Report)}, drawings=dict(drawings or {}))

    @classmethod
    def drawn(cls, draw: Callable[[], Report]) -> ReportFigure:
        """Make one of the report that a function draws, with the figures of matplotlib behind its pictures."""
        with kept_figures() as kept:
            report = draw()
        pictures = [item for item in report.items if isinstance(item, Picture)]
        return cls.of(
            report, {item.name: figure for item in pictures for pixels, figure in kept if pixels is item.pixels}
        )

    def __repr__(self) -> str:
        listed = [_described(item) for item in self.items[:_LISTED]] + ["..."] * (len(self.items) > _LISTED)
        return f"{type(self).__name__} '{self.heading}': {', '.join(listed)}"

    def _repr_html_(self) -> str:
        return html_part(self, self.items, rows=_NOTEBOOK_ROWS)

    def figure(self, item: str | None = None, *, width: float = 7.16) -> Figure:
        """Return an item as a new figure of matplotlib, to go on with; pyplot does not know it.

        Args:
            item: The name of the item; may be left out where there is only one besides scalars.
            width: In inches, of what is not drawn by matplotlib already: two columns of a journal.

        Raises:
            ValueError: There is no such item, or several, and none was named.
        """
        chosen = _parts(self._chosen(item))
        chosen = chosen[:1] if len(chosen) == 2 and isinstance(chosen[1], tuple) else chosen
        if len(chosen) != 1:
            names = ", ".join(f"'{part.name}'" for part in chosen if not isinstance(part, tuple))
            raise ValueError(f"which item of '{self.heading}' is to be the figure? There are {names or 'none'}")
        return _drawn(self, chosen[0], _Paper(width, 300), notes=self.notes)[0]

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        item: str | Sequence[str] | None = None,
        width: float = 7.16,
        dpi: int = 300,
        titles: bool = True,
    ) -> Path:
        """Save it as a file; what kind of file says the suffix of its name.

        - `.pdf`: each item on a page of its own size, at most 9.5 inches high; a longer gallery or table goes on on
          the next. Charts are lines, text is text in embedded fonts, tiles are pictures of `dpi` dots an inch. A page
          of `drawings` has the width that it was drawn with.
        - `.svg`: the same, all items one above the other, with the letters that occur embedded as a font.
        - `.png`: the same as one picture.
        - `.html`: one file to open in a browser, with every row, that loads nothing else.
        - `.csv`: the numbers of the items, without pictures: see the column `kind`.

        The folder is made if need be. The file is whole or is not there: what stood there before stays until then.

        Args:
            path: Where to.
            item: The name of an item, or several; by default all.
            width: In inches; by default two columns of a journal. One column of IEEE's is 3.5.
            dpi: Dots an inch.
            titles: Whether titles, captions and notes stand on it; a paper says them in its own type.

        Returns:
            The path.

        Raises:
            ValueError: There is no such item or no such kind of file, or `width` or `dpi` is out of range.
            OSError: The file cannot be written.
        """
        path = Path(path)
        write = _WRITERS.get(path.suffix.lower())
        if write is None:
            kinds = ", ".join(_WRITERS)
            raise ValueError(f"no kind of file is called '{path.suffix}' ({path.name}); there are {kinds}")
        if not 0.5 <= width <= 100 or not 30 <= dpi <= 2400:
            raise ValueError(f"width is from 0.5 to 100 inches and dpi from 30 to 2400, not {width} and {dpi}")
        chosen = self._chosen(item)
        if not chosen:
            raise ValueError(f"'{self.heading}' has no items, so there is nothing to save")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, write(self, chosen, _Paper(width, dpi, titles)))
        return path

    def _chosen(self, names: str | Sequence[str] | None) -> tuple[Item, ...]:
        if names is None:
            return self.items
        names = [names] if isinstance(names, str) else list(names)
        there = list(dict.fromkeys(item.name for item in self.items))
        for name in names:
            if name not in there:
                listed = suggestion(name, there) or f"There are {', '.join(there[:8])}{', ...' * (len(there) > 8)}."
                raise ValueError(f"'{self.heading}' has no item '{name}'. {listed}")
        return tuple(item for name in names for item in self.items if item.name == name)


@dataclass(frozen=True)
class _Paper:
    """What a figure is drawn for: its width in inches, dots an inch, and whether titles, captions and notes count."""

    width: float
    dpi: int
    titles: bool = True


_Part = Gallery | Picture | Curve | Table | tuple[Scalar, ...]


def _drawn(report: ReportFigure, part: _Part, paper: _Paper, **options: Any) -> list[Figure]:
    """Draw one item, or all the scalars; a picture that matplotlib has drawn is that drawing."""
    if isinstance(part, Picture) and part.name in report.drawings:
        return [report.drawings[part.name]]
    title = report.heading if isinstance(part, tuple) else f"{report.heading} · {part.name}"
    if not paper.titles:
        title, part, options = "", _without_titles(part), options | {"notes": ()}
    return item_figures(part, title=title, width=paper.width, dpi=paper.dpi, **options)


def _without_titles(part: _Part) -> _Part:
    if isinstance(part, tuple):
        return part
    return replace(part, name="", caption="") if isinstance(part, Curve) else replace(part, caption="")


def _parts(items: Sequence[Item]) -> list[_Part]:
    """The items, and all scalars together at the end."""
    scalars = tuple(item for item in items if isinstance(item, Scalar))
    return [*(item for item in items if not isinstance(item, Scalar)), *([scalars] if scalars else [])]


def _pdf(report: ReportFigure, items: Sequence[Item], paper: _Paper) -> bytes:
    figures = [_drawn(report, part, paper, notes=report.notes, page_height=_PAGE) for part in _parts(items)]
    return pdf_file([figure for pages in figures for figure in pages], dpi=paper.dpi)


def _stacked(report: ReportFigure, items: Sequence[Item], paper: _Paper) -> list[Figure]:
    """Figures to stand one above the other, with the notes below the last."""
    *above, last = _parts(items)
    figures = [_drawn(report, part, paper, page_height=_ROLL) for part in above]
    figures.append(_drawn(report, last, paper, page_height=_ROLL, notes=report.notes))
    return [figure for pages in figures for figure in pages]


def _svg(report: ReportFigure, items: Sequence[Item], paper: _Paper) -> bytes:
    return svg_file(_stacked(report, items, paper), width=paper.width, dpi=paper.dpi)


def _png(report: ReportFigure, items: Sequence[Item], paper: _Paper) -> bytes:
    return png_file(_stacked(report, items, paper), width=paper.width, dpi=paper.dpi)


def _html(report: ReportFigure, items: Sequence[Item], _: _Paper) -> bytes:
    return html_page(report, items).encode("utf-8", errors="replace")


def _csv(_: ReportFigure, items: Sequence[Item], __: _Paper) -> bytes:
    return csv_text(items).encode("utf-8", errors="replace")


_WRITERS: dict[str, Callable[[ReportFigure, Sequence[Item], _Paper], bytes]] = {
    ".pdf": _pdf,
    ".svg": _svg,
    ".png": _png,
    ".html": _html,
    ".csv": _csv,
}


def _described(item: Item) -> str:
    if isinstance(item, Scalar):
        return f"{item.name} = {item.value:.4g}"
    size = f" of {len(item.rows)} rows" if isinstance(item, (Gallery, Table)) else ""
    return f"{item.name} ({type(item).__name__.lower()}{size})"
