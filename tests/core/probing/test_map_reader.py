from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_cnnviz.core.network.hooks import watched
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.probing.map_reader import MapReader, _grid


def test_the_first_pass_over_the_batch_counts() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    reader, images = MapReader(net, select_layers(net), pool=100), torch.rand(3, 1, 6, 6)
    with reader.reading(images):
        net(images[:1])  # something else
        first = net(images)
        net(1 - images)
    torch.testing.assert_close(reader.values["0"], first.relu().flatten(1))
    assert not reader.values["0"].requires_grad
    assert reader.grids == {"0": ((2, 4, 4), (4, 4))}


@pytest.mark.parametrize("place_hooks", [None, watched])
def test_hooks_are_gone_and_failures_do_not_pass_through_the_pass(place_hooks: object) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    reader, options = (
        MapReader(net, select_layers(net), pool=None),
        {} if place_hooks is None else {"place_hooks": watched},
    )
    for side in (6, 7):
        images = torch.rand(2, 1, side, side)
        if side == 6:
            with reader.reading(images, **options):  # type: ignore[arg-type]
                net(images)
            continue
        passed = False
        with pytest.raises(ValueError, match="have different sizes"), reader.reading(images, **options):  # type: ignore[arg-type] # noqa: PT012
            net(images)
            passed = True
        assert passed
    assert not net[0]._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks
    with pytest.raises(ValueError, match="pool=0"):
        MapReader(net, select_layers(net), pool=0)


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 40), st.integers(1, 10_000))
def test_the_grid_is_as_fine_as_the_limit_allows(channels: int, height: int, width: int, pool: int) -> None:
    rows, columns = _grid((channels, height, width), pool)
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    fits = channels * rows * columns <= pool
    assert fits or (rows, columns) == (1, 1)  # a channel is not pooled away
    if channels * height * width <= pool:
        assert (rows, columns) == (height, width)
    elif fits and columns < width:
        assert channels * rows * (columns + 1) > pool
    assert _grid((channels, height, width), None) == (height, width)
