"""The arithmetic of one layer, against torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_cnnviz.core.layer_table.table import (
    fit_windows,
    output_size,
    parameter_count,
    same_padding,
    transposed_output_size,
)

NUMBERS = {"n": st.integers(1, 40), "kernel": st.integers(1, 9), "stride": st.integers(1, 5)}


MORE = {"padding": st.integers(0, 6), "dilation": st.integers(1, 3)}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of small operations: threads would wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


@given(**NUMBERS, **MORE)
def test_output_size_is_that_of_a_convolution(n: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    assume(n + 2 * padding > dilation * (kernel - 1))
    made = F.conv1d(ones(1, 1, n), ones(1, 1, kernel), None, stride, padding, dilation)
    assert output_size(n, kernel, stride, padding, dilation) == made.shape[-1]


@example(n=2, kernel=1, stride=2, padding=0, dilation=1, ceil_mode=True)  # a window that would begin at the end
@given(**NUMBERS, **MORE, ceil_mode=st.booleans())
def test_output_size_is_that_of_pooling(
    n: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> None:
    assume(padding <= kernel // 2 and n + 2 * padding > dilation * (kernel - 1))
    made = F.max_pool1d(ones(1, 1, n), kernel, stride, padding, dilation, ceil_mode)
    assert output_size(n, kernel, stride, padding, dilation, ceil_mode) == made.shape[-1]
    if dilation == 1:
        made = F.avg_pool1d(ones(1, 1, n), kernel, stride, padding, ceil_mode)
        assert output_size(n, kernel, stride, padding, ceil_mode=ceil_mode) == made.shape[-1]


@given(**NUMBERS, **MORE, extra=st.integers(0, 4))
def test_transposed_output_size(n: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> None:
    assume(extra < max(stride, dilation))
    assume((n - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra >= 0)
    made = F.conv_transpose1d(ones(1, 1, n), ones(1, 1, kernel), None, stride, padding, extra, 1, dilation)
    assert transposed_output_size(n, kernel, stride, padding, dilation, extra) == made.shape[-1]


@given(**NUMBERS, **MORE, ceil_mode=st.booleans())
def test_fit_says_which_rows_are_read_and_what_would_fit(
    n: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> None:
    assume(n + 2 * padding > dilation * (kernel - 1))
    found = fit_windows(n, kernel, stride, padding, dilation, ceil_mode)
    end = (found.output - 1) * stride + dilation * (kernel - 1) + 1  # of the last window, in the padded input
    assert found.unread == max(0, n + 2 * padding - end)
    assert found.overhang == max(0, end - n - 2 * padding)
    assert found.lost == max(0, padding + n - end)
    assert found.fits == (found.unread == found.overhang == 0)

    def fits(size: int, pad: int) -> bool:
        return size + 2 * pad > dilation * (kernel - 1) and (size + 2 * pad - dilation * (kernel - 1) - 1) % stride == 0

    assert found.fits == fits(n, padding)
    near = [size for size in range(max(1, n - stride + 1), n + stride) if fits(size, padding)]
    assert list(found.fitting_sizes) == ([] if found.fits else near)
    assert found.fitting_padding is None or fits(n, found.fitting_padding)
    if found.fitting_padding is None:
        assert not any(fits(n, pad) for pad in (padding, *range(dilation * (kernel - 1) + 1)))
    if found.preserving_padding is not None:
        assert output_size(n, kernel, stride, found.preserving_padding, dilation) == n


@given(kernel=st.integers(1, 9), dilation=st.integers(1, 3), n=st.integers(1, 40))
def test_same_padding_keeps_the_size(kernel: int, dilation: int, n: int) -> None:
    if dilation * (kernel - 1) % 2:
        with pytest.raises(ValueError, match="no padding that is equal on both sides"):
            same_padding(kernel, dilation)
    else:
        assert output_size(n, kernel, 1, same_padding(kernel, dilation), dilation) == n


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_parameter_count(groups: int, depth: int, filters: int, height: int, width: int, bias: bool) -> None:
    layer = nn.Conv2d(groups * depth, groups * filters, (height, width), groups=groups, bias=bias, device="meta")
    made = parameter_count(groups * depth, groups * filters, (height, width), groups, bias)
    assert made == sum(parameter.numel() for parameter in layer.parameters())


def test_the_lectures_examples() -> None:
    assert output_size(32, kernel=5, stride=1, padding=2) == 32
    assert parameter_count(3, filters=10, kernel=5) == 760
    assert output_size(7, kernel=3, stride=1) == 5
    assert output_size(7, kernel=3, stride=2) == 3
    misfit = fit_windows(7, kernel=3, stride=3)
    assert (misfit.output, misfit.lost, misfit.fitting_sizes, misfit.fitting_padding) == (2, 1, (6, 9), 1)
    assert [same_padding(kernel) for kernel in (3, 5, 7)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: output_size(0, 3), "n=0 must be at least 1"),
        (lambda: output_size(5, 3, stride=0), "stride=0 must be at least 1"),
        (lambda: output_size(5, 3, padding=-1), "padding=-1 must be at least 0"),
        (lambda: output_size(5, 7), "a window of 7 rows is larger than the input: 5 rows, padded to 5"),
        (lambda: output_size(5, 3, dilation=3), "a window of 7 rows is larger"),
        (lambda: transposed_output_size(1, 3, padding=2), "padding=2 cuts off all rows"),
        (lambda: transposed_output_size(4, 3, 2, output_padding=2), "output_padding=2 must be smaller"),
        (lambda: parameter_count(3, 8, 3, groups=2), "groups=2 must divide in_channels=3"),
        (lambda: parameter_count(3, 8, 0), "kernel=0 must be at least 1"),
    ],
)
def test_wrong_numbers_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
