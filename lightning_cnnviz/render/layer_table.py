"""What a network does with an image, as a report and as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import NamedTuple

from lightning_cnnviz.core.layer_table.table import LayerRow, LayerTable, WindowFit
from lightning_cnnviz.render.tables import Side, aligned_text
from lightning_cnnviz.report import Item, LayerFacts, Number, Report, Scalar, Table

__all__ = ["layer_table_report", "layer_table_text"]

_COLUMNS = (
    *("layer", "type", "input", "output", "size", "kernel", "stride", "padding", "dilation", "groups"),
    *("jump", "receptive field", "first center", "parameters", "filters", "multiply-adds", "activation bytes"),
)
_REMARK_COLUMNS = ("layers", "size", "what happens", "what would help")
_LEGEND = (
    "Jump: pixels from a unit to the next. Receptive field in pixels, not cut off at the image's border; image: all "
    "of it.",
    "Center: of the first unit's field, 0 being the middle of the first pixel.",
)
_LEGEND_OF_SIGNALS = (
    "Jump: samples from a unit to the next. Receptive field in samples, not cut off at the signal's ends; signal: all "
    "of it.",
    "Center: of the first unit's field, 0 being the first sample.",
)
_LEGEND_OF_VOLUMES = (
    "Jump: pixels from a unit to the next, deep, down and across. Receptive field in pixels, not cut off at the "
    "volume's border; volume: all of it along that axis.",
    _LEGEND[1],
)


def layer_table_report(table: LayerTable) -> Report:
    """Put a network's layers into a table, a row an operation without norms, and what does not fit into another."""
    whole = _input(table)
    rows = tuple(_report_row(row, whole) for row in table.layers)
    items: list[Item] = [Table("layers", _COLUMNS, rows, caption=" · ".join(_totals(table)))]
    remarks = tuple(
        (_listed(names), _unbroken(remark.size), remark.happens, remark.helps)
        for remark, names in _remarks(table).items()
    )
    if remarks:
        lost = {"signal": "samples", "volume": "depths, rows and columns"}.get(whole, "rows and columns")
        items.append(Table("does_not_fit", _REMARK_COLUMNS, remarks, caption=f"where {lost} are lost, and what fits"))
    items += [
        Scalar("parameters", float(table.parameters)),
        Scalar("multiply_adds", float(table.macs)),
        Scalar("activation_bytes", float(table.activation_bytes)),
    ]
    notes, facts = (*_legend(table), *_notes(table)), tuple(_facts(row, whole) for row in table.layers)
    return Report("layer_table", title=_title(table), items=tuple(items), notes=notes, facts=facts)


def layer_table_text(table: LayerTable) -> str:
    """Return the table as text of up to 160 columns or so, with its totals, and sentences on what does not fit."""
    square = all(len(set(row.fit)) <= 1 for row in table.layers)
    size = "size" if square else "depth" if _input(table) == "volume" else "height"
    columns = ("layer", "type", "output", size, "parameters", "MACs", "memory", "jump", "field", "center")
    sides: list[Side] = ["left", "left", "right", "left", "right", "right", "right", "right", "right", "right"]
    text = aligned_text(columns, [_text_row(row, _input(table)) for row in table.layers], sides, widest=32)
    below = "\n".join((" · ".join(_totals(table)), *_legend(table), *_notes(table)))
    remarks = (f"- {_listed(names)}: {_sentence(remark)}" for remark, names in _remarks(table).items())
    lines = [line for remark in remarks for line in wrap(remark, 150, subsequent_indent="  ")]
    return "\n\n".join(part for part in (_title(table), text, below, "\n".join(lines)) if part)


def _title(table: LayerTable) -> str:
    kind = _input(table)
    return f"{table.model} on {'an' if kind == 'image' else 'a'} {kind} of {_shape(table.input_size)}"


def _input(table: LayerTable) -> str:
    return {2: "signal", 4: "volume"}.get(len(table.input_size), "image")


def _legend(table: LayerTable) -> tuple[str, str]:
    return {"signal": _LEGEND_OF_SIGNALS, "volume": _LEGEND_OF_VOLUMES}.get(_input(table), _LEGEND)


def _totals(table: LayerTable) -> list[str]:
    totals = [
        f"{table.parameters:,} parameters",
        f"{_big(table.macs)} multiply-adds",
        f"{_bytes(table.activation_bytes)} of activations (float32, one {_input(table)})",
    ]
    hidden = sum(row.parameters for row in table.rows if row not in table.layers)
    return [*totals, f"{hidden:,} of the parameters in norms and others, not shown"] if hidden else totals


def _notes(table: LayerTable) -> list[str]:
    notes = []
    if table.unused:
        parts = list(dict.fromkeys(name.split(".")[0] for name, _ in table.unused))
        total = sum(size for _, size in table.unused)
        notes.append(f"{total:,} of the parameters, in {_listed(parts)}, do not run in eval mode.")
    if any(row.clipped and any(row.receptive_field or ()) for row in table.layers):
        notes.append(f"At least (>=): such a field could be measured within the borders of this {_input(table)} only.")
    if not all(row.followed for row in table.layers):
        read = "samples" if _input(table) == "signal" else "pixels"
        notes.append(f"Not known: which {read} are read is decided by values, or by an operation that is not followed.")
    return notes


# Rows


def _report_row(row: LayerRow, whole: str) -> tuple[Number | None, ...]:
    return (
        row.name,
        row.type.replace("functional ", "F."),
        _shape(row.input_shape),
        _shape(row.output_shape),
        "; ".join(_unbroken(text.split(", so")[0]) for text in row.formula.split("; ")),
        *(_short(numbers) for numbers in (row.kernel, row.stride, row.padding, row.dilation)),
        row.groups if row.kind in ("conv", "transposed") else None,
        _short(row.jump),
        _field(row, whole),
        _short(row.first_center),
        row.parameters or None,
        _filters(row).rpartition(" = ")[0] or _filters(row),
        row.macs or None,
        row.activation_bytes,
    )


def _facts(row: LayerRow, whole: str) -> LayerFacts:
    """What a drawing of the network needs of an operation."""
    numbers: dict[str, Number] = {"type": row.type.replace("functional ", "F."), "kind": row.kind, "use": row.use}
    numbers |= {"input": _shape(row.input_shape), "output": _shape(row.output_shape), "kernel": _short(row.kernel)}
    numbers |= {"receptive field": _field(row, whole), "parameters": row.parameters, "multiply-adds": row.macs}
    return LayerFacts(layer=row.layer, numbers=numbers)


def _text_row(row: LayerRow, whole: str) -> tuple[str, ...]:
    formula = _tight(row.formula.split("; ")[0].removeprefix("rows: "))
    return (
        row.name,
        row.type.replace("functional ", "F.") + (f", {row.groups} groups" if row.groups > 1 else ""),
        _shape(row.output_shape),
        formula.split(", so")[0],
        _filters(row),
        _big(row.macs) if row.macs else "",
        _bytes(row.activation_bytes),
        _short(row.jump),
        _field(row, whole),
        _short(row.first_center),
    )


def _filters(row: LayerRow) -> str:
    """The sum in short: 10·(5·5·3+1) = 760."""
    if not row.parameters:
        return "shared" if row.shared else ""
    each, _, rest = row.parameter_formula.partition(", times ")
    if not rest:
        return f"{row.parameters:,}"
    weights = each.removeprefix("each filter ").removeprefix("each unit ").split(" = ")[0].replace(" + ", "+")
    weights = f"({weights})" if "+" in weights else weights
    return f"{rest.split(' = ')[0].replace(',', '')}·{weights} = {row.parameters:,}"


def _field(row: LayerRow, whole: str) -> str:
    """The field's size; `whole` is what it is called where it is all of the input."""
    if row.receptive_field is None:
        return ""
    sizes = row.receptive_field[:1] if len(set(row.receptive_field)) == 1 else row.receptive_field
    if not row.followed and None in sizes:
        return "not known"
    least = "<=" if not row.followed else ">=" if row.clipped and sizes != (None,) else ""
    return least + " x ".join(whole if size is None else str(size) for size in sizes)


def _tight(formula: str) -> str:
    return formula.replace(" + ", "+").replace(" - ", "-")


def _unbroken(formula: str) -> str:
    """For a cell of a page, which breaks lines at blanks and hyphens."""
    return _tight(formula).replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(n) for n in shape)


def _short(numbers: Sequence[float] | None) -> str:
    """One number where all are equal."""
    numbers = numbers or ()
    return " x ".join(f"{number:g}" for number in (numbers[:1] if len(set(numbers)) == 1 else numbers))


def _big(number: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}" if number < 999.5 * size else f"{number / size:.0f} {letter}"
    return str(number)


def _bytes(number: int) -> str:
    return f"{_big(number)}B" if number >= 1000 else f"{number} B"


# What does not fit


class _Remark(NamedTuple):
    """What there is to say of the windows of a layer along one axis, or both."""

    size: str
    happens: str
    helps: str


def _remarks(table: LayerTable) -> dict[_Remark, list[str]]:
    """What does not fit, and what shrinks, each with the layers that it is true of."""
    told: dict[_Remark, list[str]] = {}
    for row in table.layers:
        for remark in (*_misfits(row), *_shrinks(row)):
            told.setdefault(remark, []).append(row.name)
    return told


def _sentence(remark: _Remark) -> str:
    return f"{remark.size}: {remark.happens}; {remark.helps}"


def _listed(names: list[str]) -> str:
    more = len(names) - 4
    return ", ".join(names) if more <= 1 else ", ".join(names[:4]) + f" and {more} more"


def _misfits(row: LayerRow) -> list[_Remark]:
    """What the windows of a layer leave over, and what would fit."""
    told: list[tuple[WindowFit, tuple[str, ...], str]]
    if len(set(row.fit)) == 1 and len(row.fit) == 2:  # rows and columns have the same numbers
        told = [(row.fit[0], ("row", "column"), row.formula)]
    else:
        names = ("row", "column") if len(row.fit) == 2 else ("line",)
        formulas = [text.split(": ")[-1] for text in row.formula.split("; ")]
        told = [(fit, (name,), text) for fit, name, text in zip(row.fit, names, formulas, strict=False)]
    return [
        _Remark(formula.split(", so")[0], _left_over(fit, names), _what_fits(fit))
        for fit, names, formula in told
        if not fit.fits
    ]


_SIDES = {"row": "at the bottom", "column": "at the right", "line": "at the end"}


def _left_over(fit: WindowFit, names: Sequence[str]) -> str:
    def lines(number: int) -> str:
        return " and ".join(f"{number} {name}{'s' * (number > 1)} {_SIDES[name]}" for name in names)

    if fit.overhang:
        return f"rounded up, the last windows overhang by {lines(fit.overhang)}"
    if not fit.lost:
        return f"of the padding, {lines(fit.unread)} not read; nothing of the input lost"
    padding = fit.unread - fit.lost
    return f"{lines(fit.lost)} dropped" + (f", with {padding} of the padding" if padding else "")


def _what_fits(fit: WindowFit) -> str:
    sizes = " or ".join(str(size) for size in fit.fitting_sizes)
    padding = f", or padding {fit.fitting_padding}" if fit.fitting_padding is not None else ""
    return f"{sizes} going into the layer would fit{padding}"


def _shrinks(row: LayerRow) -> list[_Remark]:
    """Which padding would have kept the size."""
    if row.kind != "conv" or not row.fit or any(fit.preserving_padding is None for fit in row.fit):
        return []
    if all(fit.output >= fit.size for fit in row.fit):
        return []
    sizes = (" x ".join(str(getattr(fit, name)) for fit in row.fit) for name in ("size", "output"))
    padding = _short([fit.preserving_padding or 0 for fit in row.fit])
    return [_Remark(" to ".join(sizes), "shrinks", f"padding {padding} would keep the size")]
