"""Random networks: receptive fields against perturbation, mining against brute force, projection against a reference.

By default a few of each; slow tests try many. To try more of them, set RANDOM_NETWORKS to how many, and a seed:
`RANDOM_NETWORKS=2000 pytest -m slow --hypothesis-seed=7 tests/core/test_random_networks.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from reference.brute_force import brute_force_top_k
from reference.deconvnet import METHODS, Recording
from reference.random_networks import Network, Step, networks
from reference.support import Compute, See, change_boxes, nan_boxes
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_cnnviz.core.deconvnet.projection import Unit, project
from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.core.tracing.receptive_field import BoundsMode

Case = tuple[Network, Tensor]
_MANY = int(os.environ.get("RANDOM_NETWORKS", "300"))


def few(count: int) -> Callable[[Any], Any]:
    options: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "phases": [Phase.explicit, Phase.generate]}
    return settings(max_examples=count, derandomize=True, **options)


def many() -> Callable[[Any], Any]:
    # Nothing is shrunk: that takes minutes, and the networks are small as they are.
    options: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "phases": [Phase.explicit, Phase.generate]}
    return settings(max_examples=_MANY, database=None, **options)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Receptive fields


def steps_of(network: Network) -> Compute:
    """Computes the network, and shows what each step gives."""

    def compute(image: Tensor, see: See) -> None:
        value = image.clone()
        for name, step in network.named_children():
            value = step(value)
            see(name, value)

    return compute


def boxes_of(network: Network, image: Tensor) -> dict[str, Tensor]:
    """The boxes `(C, H, W, 4)` of each step's units, as they are followed."""
    bounds, found = BoundsMode(), dict[str, Tensor]()

    def see(name: str, value: Tensor) -> None:
        field = bounds.receptive_field(name, value)
        boxes = torch.zeros(1, 1, 1, 4) if field is None else field.boxes
        found[name] = boxes.long().expand(*value.shape[1:], 4)

    with torch.no_grad(), bounds.follow(image):
        steps_of(network)(image, see)
    return found


def check_boxes(case: Case, *, smooth: bool) -> None:
    network, images = case
    image = images[:1]
    compute = steps_of(network)
    with torch.no_grad():
        if smooth:
            network.double()
            image = image.double()
            expected = change_boxes(compute, image, tolerance=1e-11)
        else:
            expected = nan_boxes(compute, image)
    found = boxes_of(network, image)
    for name, boxes in expected.items():
        wrong = (found[name] != boxes).any(-1).nonzero()
        if len(wrong):
            unit = tuple(wrong[0].tolist())
            got, true = found[name][unit].tolist(), boxes[unit].tolist()
            pytest.fail(f"{name}: {len(wrong)} units, the first {unit}, have the box {got} instead of {true}")


@given(networks(smooth=False))
@few(8)
def test_boxes_are_what_nan_reaches(case: Case) -> None:
    check_boxes(case, smooth=False)


@given(networks(smooth=True))
@few(6)
def test_boxes_are_what_moves_where_a_pixel_does(case: Case) -> None:
    check_boxes(case, smooth=True)


@pytest.mark.slow
@given(networks(smooth=False))
@many()
def test_boxes_are_what_nan_reaches_in_many(case: Case) -> None:
    check_boxes(case, smooth=False)


@pytest.mark.slow
@given(networks(smooth=True))
@many()
def test_boxes_are_what_moves_where_a_pixel_does_in_many(case: Case) -> None:
    check_boxes(case, smooth=True)


# What has failed, as explicit cases

FAILED: list[list[Step]] = [
    # A piece without channels, in a concatenation.
    [
        ("concatenated", {"kernel": 5, "kind": "halves"}),
        ("resize", {"mode": "nearest", "scale": 1.5, "size": None, "corners": False}),
    ],
    # The image itself is written to.
    [("written", {"kind": "zero"}), ("shuffled", {"groups": 2})],
    [("written", {"kind": "channel added"}), ("norm", {})],
    [("activation", {"kind": "relu_"})],
    [("squeeze", {"kind": "in place"}), ("residual", {"kernel": 1, "kind": "difference"})],
]


@pytest.mark.parametrize("steps", FAILED)
def test_what_has_failed_before(steps: list[Step]) -> None:
    for channels in (1, 2):
        network = Network(steps, channels, (9, 7), 3)
        images = torch.rand(3, channels, 9, 7, generator=torch.Generator().manual_seed(4))
        before = images.clone()
        check_boxes((network, images), smooth=False)
        check_mining((network, images), 3, None)
        assert torch.equal(images, before)
        for layer in range(len(network)):
            check_projection((network.float(), images), "deconvnet", layer)


# The layer table


def check_table(case: Case) -> None:
    """The field of each convolution is that of units that no border cuts off, on an image that is long enough."""
    network, images = case
    table = layer_table(network, images[:1])
    length = 600
    for axis in (0, 1):
        shape = list(images[:1].shape)
        shape[2 + axis] = length
        bounds, sizes = BoundsMode(), dict[str, Tensor]()

        def see(name: str, value: Tensor, bounds: BoundsMode = bounds, sizes: dict[str, Tensor] = sizes) -> None:
            field = bounds.receptive_field(name, value)
            if field is not None:
                sizes[name] = field.boxes

        try:
            with torch.no_grad(), bounds.follow(torch.zeros(shape)):
                steps_of(network)(torch.zeros(shape), see)
        except RuntimeError:
            continue
        for row in table.rows:
            if row.layer not in sizes or row.kind not in ("conv", "transposed") or row.receptive_field is None:
                continue
            edges = sizes[row.layer][..., [axis, 2 + axis]].flatten(0, 2)
            edges = edges[edges[:, 1] > 0]
            inside = edges[(edges[:, 0] > 0) & (edges[:, 1] < length)]
            said = row.receptive_field[axis]
            if said is None:
                assert len(inside) == 0 or row.clipped, (row.layer, row.receptive_field, inside[:3])
            elif len(inside) and not row.clipped:
                assert said == int((inside[:, 1] - inside[:, 0]).max()), (row.layer, axis, row.receptive_field)


@pytest.mark.slow
@given(networks(smooth=True))
@many()
def test_the_table_has_the_fields_of_long_images_in_many(case: Case) -> None:
    check_table(case)


# Mining


def check_mining(case: Case, k: int, per_image: int | None) -> None:
    network, images = case
    names = [name for name, _ in network.named_children()]
    if not names:
        return
    maps: dict[str, list[Tensor]] = {name: [] for name in names}
    loader = DataLoader(images, batch_size=2)  # type: ignore[arg-type]
    with torch.no_grad():
        for batch in loader:
            steps_of(network)(batch, lambda name, value: maps[name].append(value.clone()))
        expected_boxes = nan_boxes(steps_of(network), images[:1])
    found = mine_top_patches(network, loader, layers=names, k=k, per_image=per_image, features=None)
    for layer in found:
        boxes = expected_boxes[layer.layer]
        reference = brute_force_top_k(torch.cat(maps[layer.layer]), k, per_image)
        for channel, units in enumerate(reference):
            filled = layer.images[channel] >= 0
            parts = [layer.scores, layer.activations, layer.images, layer.rows, layer.columns]
            assert list(zip(*(part[channel][filled].tolist() for part in parts), strict=True)) == units
            for rank, (_, _, image, row, column) in enumerate(units):
                assert layer.boxes[channel, rank].tolist() == boxes[channel, row, column].tolist()
                top, left, bottom, right = boxes[channel, row, column].tolist()
                assert torch.equal(layer.patch(channel, rank), images[image, :, top:bottom, left:right])


@given(networks(smooth=False), st.integers(1, 4), st.sampled_from([1, None]))
@few(8)
def test_mining_is_brute_force(case: Case, k: int, per_image: int | None) -> None:
    check_mining(case, k, per_image)


@pytest.mark.slow
@given(networks(smooth=False), st.integers(1, 4), st.sampled_from([1, None]))
@many()
def test_mining_is_brute_force_in_many(case: Case, k: int, per_image: int | None) -> None:
    check_mining(case, k, per_image)


# Projection


def strongest(maps: Tensor) -> tuple[int, int, int]:
    place = int(maps.argmax())
    channel, rest = divmod(place, maps[0].numel())
    return (channel, *divmod(rest, maps.shape[2]))


def by_autograd(network: Network, image: Tensor, layer: str, place: tuple[int, int, int]) -> Tensor | None:
    """One unit's gradient, times its activation; None where autograd cannot tell."""
    pixels = image.clone().requires_grad_()
    kept: dict[str, Tensor] = {}
    steps_of(network)(pixels, lambda name, value: kept.__setitem__(name, value.clone()))
    unit = kept[layer][(0, *place)]
    if not unit.requires_grad:
        return torch.zeros_like(image[0])
    try:
        (gradient,) = torch.autograd.grad(unit, pixels, allow_unused=True)
    except RuntimeError as error:  # what autograd had kept was written over
        if "modified by an inplace operation" not in str(error):
            raise
        return None
    return torch.zeros_like(image[0]) if gradient is None else gradient[0] * unit.detach()


def check_projection(case: Case, method: str, choice: int) -> None:
    network, images = case
    if not len(network):
        return
    network.double()
    image = images[:1].double()
    layer = str(choice % len(network))
    try:
        recording: Recording | None = Recording(network, image, layer)
        maps = recording.activations  # type: ignore[union-attr]
    except (NotImplementedError, TypeError):  # writes to views, which the reference does not follow
        recording, method, seen = None, "gradient", dict[str, Tensor]()
        with torch.no_grad():
            steps_of(network)(image, lambda name, value: seen.__setitem__(name, value.clone()))
        maps = seen[layer][0]
    channels, rows, columns = maps.shape
    places = [(0, 0, 0), (channels - 1, rows // 2, columns // 2), strongest(maps)]
    if not any(_rectifies(*step) for step in network.steps[: int(layer) + 1]):
        method = "gradient"
    before = image.clone()
    projection = project(network, image, [Unit(0, layer, *place) for place in places], method=method)  # type: ignore[arg-type]
    assert torch.equal(image, before)
    for number, place in enumerate(places):
        if recording is None:
            expected = by_autograd(network, image, layer, place)
        else:
            expected = recording.projection(*place, method)
        if expected is None:
            continue
        got = projection.on_image(number)
        scale = max(float(expected.abs().max()), 1e-12)
        assert float((got - expected).abs().max()) <= 1e-9 * max(scale, 1e-3), (layer, place, method)


def _rectifies(name: str, options: dict[str, Any]) -> bool:
    return name == "activation" and options["kind"] not in ("sigmoid", "mul_")


@given(networks(smooth=False), st.sampled_from(METHODS), st.integers(0, 5))
@few(8)
def test_projection_is_the_reference(case: Case, method: str, choice: int) -> None:
    check_projection(case, method, choice)


@pytest.mark.slow
@given(st.one_of(networks(smooth=False), networks(smooth=True)), st.sampled_from(METHODS), st.integers(0, 5))
@many()
def test_projection_is_the_reference_in_many(case: Case, method: str, choice: int) -> None:
    check_projection(case, method, choice)
