"""The numbers of many looks as data frames of pandas."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lightning_cnnviz.record._tables import Columns, columns_of, report_columns
from lightning_cnnviz.record.store import Carried, RecordedLook
from lightning_cnnviz.render.views import Seen, view_scalars
from lightning_cnnviz.report import Scalar

__all__ = ["scalars_frame", "table_frame"]

# Columns that may lack a value, whole numbers all the same.
_WHOLE = ("label", "most_like")


def scalars_frame(looks: Iterable[RecordedLook]) -> pd.DataFrame:
    """Return the scalars of some looks, a line a scalar of a look, in the order of the looks.

    Columns: `run`, `view`, `name` (the monitor's), `stage`, `dataset`, `loader`, `epoch`, `global_step`, `time` (UTC),
    `scalar` (its name) and `value` (NaN where it could not be measured). What is damaged is left out, with a warning.
    """
    empty = {"scalar": np.array([], dtype=object), "value": np.array([], dtype=float)}
    return _joined(looks, _scalars, empty)


def table_frame(looks: Iterable[RecordedLook]) -> pd.DataFrame:
    """Return what some looks of one view have found, a line an observation, in the order of the looks.

    The first columns say which look it is, as in `scalars_frame`; the others are the view's: of `top_patches`, for
    example, `layer`, `feature`, `rank` (from 1), `activation`, `score`, `image`, `label`, `class_name`, `file`, `row`,
    `column`, `top`, `left`, `bottom`, `right` (the receptive field in the image), and `shown`, whether the patch itself
    was kept; of a network of several heads, or classes of segmentation, `of` says of which. What is damaged is left
    out, with a warning.
    """
    return _joined(looks, _table, {})


def _joined(
    looks: Iterable[RecordedLook], read: Callable[[RecordedLook], list[Columns]], empty: Columns
) -> pd.DataFrame:
    frames = []
    for look in looks:
        try:
            parts = read(look)
        except (ValueError, OSError) as error:
            warnings.warn(f"a look is left out: {error}", stacklevel=4)
            continue
        frames += [_frame({**_identity(look), **columns}) for columns in parts]
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({name: [] for name in _IDENTITY} | empty)


_IDENTITY: Mapping[str, Callable[[Any], Any]] = {
    "run": lambda identity: identity.run,
    "view": lambda identity: identity.view,
    "name": lambda identity: identity.name,
    "stage": lambda identity: identity.stage,
    "dataset": lambda identity: identity.data.dataset,
    "loader": lambda identity: identity.data.loader,
    "epoch": lambda identity: identity.epoch,
    "global_step": lambda identity: identity.global_step,
    "time": lambda identity: pd.Timestamp(round(identity.time * 1e6), unit="us", tz="UTC"),
}


def _identity(look: RecordedLook) -> Columns:
    return {name: value(look.identity) for name, value in _IDENTITY.items()}


def _scalars(look: RecordedLook) -> list[Columns]:
    if look.has_result:
        seen = Seen(result=look.outline, display=look.display, arguments=look.arguments, epoch=look.epoch)
        scalars = view_scalars(look.identity.view, seen, Carried(look.earlier()))
    else:
        scalars = [item for item in look.report().items if isinstance(item, Scalar)]
    return [{"scalar": [scalar.name for scalar in scalars], "value": [float(scalar.value) for scalar in scalars]}]


def _table(look: RecordedLook) -> list[Columns]:
    if look.has_result:
        return list(columns_of(look.identity.view, look.outline, look.display))
    return list(report_columns(look.report()))


def _frame(columns: Columns) -> pd.DataFrame:
    lists = {name: values for name, values in columns.items() if isinstance(values, (list, tuple, range, np.ndarray))}
    length = max(map(len, lists.values()), default=0)
    return pd.DataFrame({name: _series(name, lists.get(name, [columns[name]] * length)) for name in columns})


def _series(name: str, values: Any) -> Any:
    if name in _WHOLE:
        return pd.Series(list(values), dtype="Int64")
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
        return pd.Series(values)
    if all(value is None or isinstance(value, str) for value in values):
        # Names of files need not be Unicode; what a table is written to asks for it.
        texts = [value and str(value).encode("utf-8", "backslashreplace").decode() for value in values]
        return pd.Series(texts, dtype=object)
    return pd.Series(list(values))
