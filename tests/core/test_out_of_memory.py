"""Memory that does not suffice: views go on with fewer images at a time, and say so where one is too many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Unit, project
from lightning_cnnviz.core.images.attribution import attribute
from lightning_cnnviz.core.images.invariance import measure_invariance
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.core.maximization.maximize import maximize, strongest_images
from lightning_cnnviz.core.maximization.objectives import UnitActivation
from lightning_cnnviz.core.network.memory import in_chunks, is_out_of_memory, with_less
from lightning_cnnviz.core.probing.tap import tap_features
from lightning_cnnviz.core.top_patches.search import mine_top_patches

IMAGES = torch.rand(6, 1, 10, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
ERRORS: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
]


class Small(nn.Module):
    """Takes no more than so many images at a time."""

    def __init__(self, room: int = 100) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.deep, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.room, self.error, self.failures = room, ERRORS[0], 0

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            self.failures += 1
            raise self.error
        maps = self.deep(self.conv(images).relu())
        scores: Tensor = self.head(maps.relu().mean((2, 3)))
        return scores


def _projected(network: nn.Module) -> Any:
    return project(network, IMAGES, [Unit(number % 6, "deep", number % 4) for number in range(12)]).pixels


def _maximized(network: nn.Module) -> Any:
    objectives = [UnitActivation("deep", channel) for channel in range(4)]
    found = maximize(network, objectives, (1, 10, 10), starts=1, steps=3)
    best = strongest_images(network, objectives, IMAGES)
    return found.images, found.activations, found.history, best.activations, best.numbers


def _swept(network: nn.Module) -> Any:
    return [sweep.raw for sweep in measure_invariance(network, IMAGES, LABELS, transforms="translation").sweeps]


VIEWS: dict[str, Callable[[nn.Module], Any]] = {
    "projection": _projected,
    "maximization": _maximized,
    "occlusion": lambda network: occlude(network, IMAGES, LABELS, "deep", size=5, stride=5).activations,
    "invariance": _swept,
    "attribution": lambda network: attribute(network, IMAGES, LABELS, "gradcam", layer="deep").maps,
    "integrated gradients": lambda network: attribute(network, IMAGES, LABELS, "integrated_gradients", steps=5).maps,
    "features": lambda network: tap_features(network, [(IMAGES, LABELS)], pool=16)["deep"].values,
    "mining": lambda network: mine_top_patches(network, [(IMAGES, LABELS)], "deep", k=2)["deep"].scores,
}


@pytest.mark.fault(
    "memory",
    "memory runs out while several images are run: CUDA's error, or that of the CPU's allocator",
    "half as many are run at a time, down to one, and the result is that of enough memory: in projections, "
    "maximization, occlusion, invariance, attribution, features and mining",
)
@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "CPU"])
@pytest.mark.parametrize("view", VIEWS)
def test_fewer_at_a_time(view: str, error: Exception) -> None:
    expected, network = VIEWS[view](Small()), Small(room=1)
    network.error = error
    torch.testing.assert_close(VIEWS[view](network), expected, rtol=1e-4, atol=1e-5)
    assert network.failures
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert network.training


@pytest.mark.fault(
    "memory",
    "memory does not suffice for a single image",
    "the error says that memory is what is missing, and not that the network does not take such images",
)
@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "CPU"])
@pytest.mark.parametrize("view", VIEWS)
def test_too_little_for_one_is_called_that(view: str, error: Exception) -> None:
    network = Small(room=0)
    network.error = error
    with pytest.raises((RuntimeError, MemoryError), match="memory") as raised:
        VIEWS[view](network)
    assert is_out_of_memory(raised.value)
    assert "take images" not in str(raised.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("error", [*ERRORS, MemoryError()])
def test_a_layer_table_calls_it_that_too(error: Exception) -> None:
    network = Small(room=0)
    network.error = error
    with pytest.raises(torch.OutOfMemoryError, match="there is not enough memory for one image of 1x10x10"):
        layer_table(network, (1, 10, 10))


def test_what_is_no_lack_of_memory_is_raised_at_once() -> None:
    calls: list[int] = []

    def fails(together: int) -> None:
        calls.append(together)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        with_less(fails, 8)
    assert calls == [8]
    assert in_chunks(lambda part: part, 0) == []


def test_what_is_enough_is_remembered() -> None:
    sizes: list[int] = []

    def work(part: slice) -> None:
        sizes.append(part.stop - part.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    in_chunks(work, 10)
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
