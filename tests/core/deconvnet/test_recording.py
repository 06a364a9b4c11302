"""What of a pass is recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.deconvnet.recording import FarEnough, Recorder
from lightning_cnnviz.core.deconvnet.rules import Node, ProjectionError

IMAGES = torch.rand(2, 3, 4, 4)


def recorded(function: Callable[[Tensor], object], enough: int | None = None) -> tuple[list[Node], Recorder]:
    nodes, shapes = list[Node](), list[tuple[int, ...]]()
    recorder = Recorder("deconvnet", 2, nodes, shapes, enough)
    images = IMAGES.clone()
    recorder.new(images)
    with torch.no_grad(), recorder:
        function(images)
    return nodes, recorder


def test_what_does_not_depend_on_the_image_is_left_out() -> None:
    nodes, _ = recorded(lambda x: (x + torch.ones(3, 1, 1) * 2, torch.zeros_like(x) + 1))
    assert [(node.name, node.inputs, node.outputs) for node in nodes] == [("add", (0,), (1,))]


def test_a_twin_that_writes_in_place_makes_a_new_value() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        y.relu_()
        return y + x

    nodes, _ = recorded(function)
    assert [(node.name, node.inputs, node.outputs) for node in nodes] == [
        ("mul", (0,), (1,)),
        ("relu", (1,), (2,)),
        ("add", (2, 0), (3,)),
    ]


def test_who_looks_on_is_not_recorded() -> None:
    def function(x: Tensor) -> None:
        recorder.paused = True
        x.clone()

    nodes, shapes = list[Node](), list[tuple[int, ...]]()
    recorder = Recorder("deconvnet", 2, nodes, shapes)
    images = IMAGES.clone()
    recorder.new(images)
    with recorder:
        function(images)
    assert not nodes


def test_it_ends_where_enough_has_run() -> None:
    with pytest.raises(FarEnough):
        recorded(lambda x: x.relu().relu().relu(), enough=2)


def test_what_a_slice_writes_is_read_by_the_whole() -> None:
    nodes, _ = recorded(lambda x: (x[:, 0].mul_(2), x + 1))
    assert [(node.name, node.inputs, node.outputs) for node in nodes] == [
        ("select", (0,), (1,)),
        ("mul", (1,), (2,)),
        ("overwrite", (0, 2), (3,)),
        ("add", (3,), (4,)),
    ]


def test_what_constants_overwrite_depends_on_the_image_no_more() -> None:
    nodes, _ = recorded(lambda x: (torch.add(torch.ones(2, 3, 4, 4), 1, out=x), x + 1))
    assert not nodes


def test_a_write_that_nobody_could_follow_is_refused() -> None:
    with pytest.raises(ProjectionError, match=r"_foreach_mul_.* cannot be followed back"):
        recorded(lambda x: torch._foreach_mul_([x], 2.0))
