"""A wrong argument is told from what does not suit."""

from __future__ import annotations

import pytest

from lightning_cnnviz.core.data.distributed import OtherRankError
from lightning_cnnviz.core.network.arguments import WrongArgumentError, is_wrong_argument
from lightning_cnnviz.core.network.layers import LayerNotFoundError


def caused_by(cause: Exception) -> Exception:
    error = ValueError("said once more")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (WrongArgumentError("k=0"), True),
        (LayerNotFoundError("no layer"), True),
        (caused_by(WrongArgumentError("k=0")), True),
        (OtherRankError("it failed on rank 1", unsuitable=True, wrong=True), True),
        (OtherRankError("it failed on rank 1", unsuitable=True), False),
        (ValueError("no labels"), False),
        (caused_by(RuntimeError("mat1 and mat2")), False),
    ],
)
def test_what_is_an_argument_that_is_wrong(error: Exception, wrong: bool) -> None:
    assert is_wrong_argument(error) == wrong
