"""Invariance: against a plain loop, by what must not change, and without trace."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_cnnviz.core.images.invariance import (
    InvarianceCurves,
    Sweep,
    area,
    check_invariance,
    half_width,
    measure_invariance,
)
from lightning_cnnviz.core.images.transforms import Transform, resolve_transforms
from lightning_cnnviz.core.network.layers import LayerNotFoundError

ROLL = Transform("roll", lambda images, value: images.roll(round(value), 2), (-3, -1, 0, 2, 5), "rows", 0)
COPY = Transform("copy", lambda images, value: images.clone(), (0, 1, 2))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(5 * 25, 4),
    )
    nn.init.normal_(model[1].running_mean, std=0.2)  # type: ignore[arg-type]
    nn.init.uniform_(model[1].running_var, 0.5, 2)  # type: ignore[arg-type]
    return model


def images_of(count: int = 3, size: int = 12) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def assert_same(found: InvarianceCurves, expected: InvarianceCurves, **tolerance: float) -> None:
    assert found.layers == expected.layers
    for one, other in zip(found.sweeps, expected.sweeps, strict=True):
        for name in ("values", "raw", "relative", "unit", "probabilities"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), equal_nan=True, **tolerance)


@torch.no_grad()
def test_distances_and_probabilities_are_those_of_a_plain_loop() -> None:
    model, images, labels = network(), images_of(), torch.tensor([3, 0, 2])
    found = measure_invariance(model, images, labels, ["3", "4", "7"], ["rotation", ROLL], fill=0.3)
    assert found.layers == ("3", "4", "7")
    slow = model.double().eval()
    for sweep, transform in zip(
        found.sweeps, resolve_transforms(["rotation", ROLL], images, torch.full((3,), 0.3)), strict=True
    ):
        assert sweep.values.tolist() == list(transform.values)
        for layer, depth in enumerate((4, 5, 8)):
            for number, image in enumerate(images):
                f = slow[:depth](image[None].double()).flatten().detach()
                for at, value in enumerate(transform.values):
                    moved = transform.apply(image[None], value).double()
                    g = slow[:depth](moved).flatten().detach()
                    near = {"abs": 2e-4, "rel": 1e-3}
                    assert float(sweep.raw[layer, number, at]) == pytest.approx(float((g - f).norm()), **near)
                    relative = float((g - f).norm() / f.norm())
                    assert float(sweep.relative[layer, number, at]) == pytest.approx(relative, **near)
                    unit = float((g / g.norm() - f / f.norm()).norm())
                    assert float(sweep.unit[layer, number, at]) == pytest.approx(unit, abs=1e-3)
                    p = float(slow(moved).softmax(1)[0, labels[number]])
                    assert float(sweep.probabilities[number, at]) == pytest.approx(p, abs=1e-5)


def test_by_default_the_first_convolution_behind_its_batchnorm_and_what_the_classifier_is_given() -> None:
    model, images = network(), images_of()
    found = measure_invariance(model, images)
    assert found.layers == ("0", "input of 7")
    assert [sweep.transform for sweep in found.sweeps] == ["translation", "scale", "rotation"]
    model.eval()
    moved = images.roll(2, 2)
    (sweep,) = measure_invariance(model, images, transforms=ROLL).sweeps
    for line, depth in enumerate((2, 7)):
        expected = (model[:depth](moved) - model[:depth](images)).flatten(1).norm(dim=1).detach()
        torch.testing.assert_close(sweep.raw[line, :, 3], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalization", [None, ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])])
@pytest.mark.parametrize("on_pixels", [False, True])
def test_no_transform_no_distance(on_pixels: bool, normalization: Any) -> None:
    model, images = network(), images_of()
    own = replace(COPY, on_pixels=on_pixels)
    found = measure_invariance(model, images, torch.tensor([0, 1, 2]), "conv", own, normalization=normalization)
    (sweep,) = found.sweeps
    for distances in (sweep.raw, sweep.relative, sweep.unit):
        assert torch.equal(distances, torch.zeros(2, 3, 3))
    assert torch.equal(sweep.probabilities, found.untouched.probabilities[:, None].expand(3, 3))


def test_at_the_identity_of_each_sweep_nothing_has_moved() -> None:
    found = measure_invariance(network(), images_of(), torch.tensor([0, 1, 2]), transforms=["scale", "rotation"])
    for sweep in found.sweeps:
        assert torch.equal(sweep.raw[..., 0], torch.zeros(2, 3))
        assert torch.equal(sweep.probabilities[:, 0], found.untouched.probabilities)
        assert bool((sweep.raw[..., 1:] > 0).all())


def test_rotation_by_nothing_and_by_a_full_turn_agree() -> None:
    images = images_of()
    (rotation,) = resolve_transforms("rotation", images, torch.zeros(3))
    turned = replace(rotation, values=(0, 90, 360), identity=None)
    (sweep,) = measure_invariance(network(), images, layers="conv", transforms=turned).sweeps
    for curves in (sweep.raw, sweep.relative, sweep.unit, sweep.probabilities):
        assert torch.equal(curves[..., 0], curves[..., 2])
    assert bool((sweep.raw[..., 1] > 0).all())


def circular(*head: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 5, padding=2, padding_mode="circular")
    return nn.Sequential(convolution, nn.ReLU(), *head)


def test_circular_convolution_and_global_pooling_are_invariant_to_circular_translation() -> None:
    pooled = circular(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    flat = circular(nn.Flatten(), nn.LazyLinear(4))
    flat(images_of())
    labels = torch.tensor([0, 1, 2])
    (invariant,) = measure_invariance(pooled, images_of(), labels, ["1", "2", "4"], ROLL).sweeps
    (sensitive,) = measure_invariance(flat, images_of(), labels, ["1", "2", "3"], ROLL).sweeps
    elsewhere = torch.tensor([0, 1, 3, 4])
    assert float(invariant.relative[0][:, elsewhere].min()) > 0.1  # the maps themselves move along
    assert float(invariant.relative[1:].max()) < 1e-6
    torch.testing.assert_close(invariant.probabilities, invariant.probabilities[:, 2:3].expand(3, 5))
    assert float(sensitive.relative[1][:, elsewhere].min()) > 0.1
    assert float(sensitive.relative[2][:, elsewhere].min()) > 1e-2
    assert float((sensitive.probabilities - sensitive.probabilities[:, 2:3]).abs().amax()) > 1e-3


def test_the_probability_of_an_image_is_not_touched_by_the_others() -> None:
    model, images, labels = network(), images_of(4), torch.tensor([3, 0, 2, 1])
    (together,) = measure_invariance(model, images, labels, transforms=ROLL).sweeps
    for number in range(4):
        (alone,) = measure_invariance(
            model, images[number : number + 1], labels[number : number + 1], transforms=ROLL
        ).sweeps
        torch.testing.assert_close(together.probabilities[number], alone.probabilities[0])
        torch.testing.assert_close(together.raw[:, number], alone.raw[:, 0], rtol=1e-4, atol=1e-5)
    (others,) = measure_invariance(model, images, labels.flip(0), transforms=ROLL).sweeps
    assert not torch.allclose(others.probabilities, together.probabilities)


@settings(max_examples=8)
@given(st.integers(1, 40))
def test_the_size_of_batches_does_not_matter(batch_size: int) -> None:
    model, images = network(), images_of(5)
    expected = measure_invariance(model, images, transforms=[ROLL, "scale"], batch_size=16)
    found = measure_invariance(model, images, transforms=[ROLL, "scale"], batch_size=batch_size)
    assert_same(found, expected, rtol=1e-4, atol=1e-4)


def test_shares_of_two_ranks_are_the_whole() -> None:
    model, images, labels = network(), images_of(5), torch.tensor([3, 0, 2, 1, 1])
    options: dict[str, Any] = {"transforms": ["scale", ROLL], "fill": 0.5}
    whole = measure_invariance(model, images, labels, **options)
    parts = [measure_invariance(model, images[rank::2], labels[rank::2], **options) for rank in range(2)]
    joined = InvarianceCurves.joined(parts)
    assert_same(joined, whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(joined.untouched.targets, labels)


def test_features_that_are_all_zero_have_no_relative_distance() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight.zero_()  # type: ignore[operator, union-attr]
        model[3].bias.fill_(-1)  # type: ignore[operator, union-attr]
    (sweep,) = measure_invariance(model, images_of(), layers=["4"], transforms=ROLL).sweeps
    assert torch.equal(sweep.raw, torch.zeros(1, 3, 5))
    assert bool(sweep.relative.isnan().all())
    assert bool(sweep.unit.isnan().all())


def test_a_network_of_probabilities_gives_the_same_as_one_of_logits() -> None:
    model, images = network(), images_of()
    (plain,) = measure_invariance(model, images, layers="conv", transforms=ROLL).sweeps
    (normalized,) = measure_invariance(nn.Sequential(*model, nn.Softmax(1)), images, None, "conv", ROLL).sweeps
    torch.testing.assert_close(plain.probabilities, normalized.probabilities)


def test_half_precision_is_transformed_in_single() -> None:
    model, images = network().to(torch.bfloat16), images_of().to(torch.bfloat16)
    (sweep,) = measure_invariance(model, images, transforms="rotation").sweeps
    assert sweep.raw.dtype == sweep.probabilities.dtype == torch.float32
    (single,) = measure_invariance(network(), images_of(), transforms="rotation").sweeps
    torch.testing.assert_close(sweep.raw, single.raw, rtol=0.1, atol=0.1)


def test_progress_is_shown_over_all_pieces_of_work() -> None:
    seen: list[int] = []

    def progress(work: Iterable[Any]) -> Iterable[Any]:
        pieces = list(work)
        seen.append(len(pieces))
        return pieces

    measure_invariance(network(), images_of(), transforms=ROLL, batch_size=6, progress=progress)
    assert seen == [3]  # three images at two values each


def test_the_area_is_the_mean_height() -> None:
    values = torch.tensor([0.0, 1.0, 3.0])
    curves = torch.tensor([[2.0, 2.0, 2.0], [0.0, 1.0, 3.0]])
    assert area(curves, values).tolist() == pytest.approx([2.0, 1.5])


@pytest.mark.parametrize(
    ("line", "identity", "width"),
    [
        ([0.8, 0.8, 0.8, 0.8, 0.8], 0, 2.0),  # never: the sweep itself
        ([0.0, 0.8, 0.8, 0.8, 0.0], 0, 1.5),  # half way down on either side
        ([0.2, 0.6, 0.8, 0.6, 0.2], 0, 1.5),
        ([0.8, 0.0, 0.8, 0.8, 0.8], 0, 1.25),  # the mean of 0.5 and 2
        ([0.8, 0.8, 0.8, 0.6, 0.2], -2, 3.5),  # from the lower end of a sweep: there is one side
        ([0.8, 0.6, 0.6, 0.0, 0.8], 0.5, 1.375),  # between two values
    ],
)
def test_half_width(line: list[float], identity: float, width: float) -> None:
    values, untouched = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]), torch.tensor([0.8])
    found = half_width(torch.tensor([line]), values, identity, untouched)
    assert found.tolist() == pytest.approx([width], abs=1e-6)


@pytest.mark.parametrize("identity", [None, 3.0])
def test_without_an_identity_in_the_sweep_there_is_no_half_width(identity: float | None) -> None:
    found = half_width(torch.ones(2, 2), torch.tensor([0.0, 1.0]), identity, torch.ones(2))
    assert all(math.isnan(value) for value in found.tolist())


@pytest.mark.parametrize("check", [False, True], ids=["measure", "check"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": torch.tensor([0, 4, 1])}, r"labels \[4\] are out of range: the network has 4 classes"),
        ({"labels": torch.tensor([0, 1])}, "give one whole number for each of the 3 images"),
        ({"images": torch.rand(3, 3, 2, 2)}, r"Sequential does not take images of shape \(3, 2, 2\)"),
        ({"images": torch.rand(3, 12, 12)}, r"give one or more as a float or uint8 tensor \(N, C, H, W\)"),
        ({"model": nn.Sequential(nn.Conv2d(3, 4, 3))}, r"returns, for 3 images, a tensor.*: a score for each pixel"),
        ({"layers": "features.9"}, "no layer of Sequential matches 'features.9'"),
        ({"transforms": "twist"}, "there is no 'twist'"),
        ({"transforms": replace(COPY, apply=lambda i, v: i[..., :-1])}, "it has to keep their shape"),
        ({"normalization": ([0.5] * 2, [1.0] * 2)}, "does not fit images of 3 channels"),
        ({"transforms": "brightness", "images": images_of() * 9}, r"give normalization=\(mean, std\)"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(432, 4))}, "no convolution that runs exactly once"),
    ],
)
def test_what_cannot_be_measured_says_so(change: dict[str, Any], match: str, check: bool) -> None:
    given_: dict[str, Any] = {"model": network(), "images": images_of(), "labels": torch.tensor([0, 1, 2]), **change}
    with pytest.raises(ValueError, match=match):
        (check_invariance if check else measure_invariance)(**given_)


def test_no_such_layer_is_an_error_of_its_own_kind() -> None:
    with pytest.raises(LayerNotFoundError, match="no convolution"):
        measure_invariance(nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), images_of())


def test_a_sweep_of_shapes_that_do_not_fit_is_refused() -> None:
    ones = torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="sweep 'own': distances"):
        Sweep(
            transform="own",
            label="",
            identity=None,
            values=torch.arange(4.0),
            raw=ones,
            relative=ones,
            unit=ones,
            probabilities=torch.ones(2, 3),
        )


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_no_trace(fails: bool) -> None:
    model, images = network().train(), images_of()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[arg-type]
    before, kept = {name: value.clone() for name, value in model.state_dict().items()}, images.clone()

    def noisy(given: Tensor, value: float) -> Tensor:
        if fails and value == 2:
            raise RuntimeError("the user's own mistake")
        return given + value * torch.rand(given.shape)

    chance = torch.get_rng_state()
    own = Transform("noise", noisy, (0, 1, 2))
    if fails:
        with pytest.raises(RuntimeError, match="the user's own mistake"):
            measure_invariance(model, images, transforms=own)
    else:
        check_invariance(model, images, transforms=own)
        measure_invariance(model, images, transforms=own)
    assert torch.equal(chance, torch.get_rng_state())
    assert torch.equal(images, kept)
    assert [module.training for module in model] == [True, False, *[True] * 6]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))  # type: ignore[arg-type]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
