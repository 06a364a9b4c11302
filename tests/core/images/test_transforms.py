"""Transforms do what their names say: against plain loops, and by what a linear ramp becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_cnnviz.core.images.transforms import TRANSFORMS, PixelScale, Transform, resolve_transforms
from lightning_cnnviz.core.maximization.regularization import Jitter

FILL = torch.tensor([-3.0, -4.0, -5.0])


def named(name: str, size: tuple[int, int] = (24, 32)) -> Transform:
    (found,) = resolve_transforms(name, torch.zeros(1, 3, *size), FILL)
    return found


def ramps(height: int, width: int) -> Tensor:
    """`(1, 3, H, W)`: the row, the column, and one; rows and columns counted from the center."""
    row = torch.arange(height).view(-1, 1).expand(height, width) - (height - 1) / 2
    column = torch.arange(width).view(1, -1).expand(height, width) - (width - 1) / 2
    return torch.stack([row, column, torch.ones(height, width)])[None].float()


@pytest.mark.parametrize("vertical", [True, False])
@pytest.mark.parametrize("by", [-30, -7, -1, 0, 1, 5, 24])
def test_translation_moves_each_pixel_and_fills_what_comes_in(by: int, vertical: bool) -> None:
    images = torch.randn(2, 3, 10, 12)
    found = named("translation" if vertical else "horizontal_translation").apply(images, by)
    for row in range(10):
        for column in range(12):
            source = (row - by, column) if vertical else (row, column - by)
            inside = 0 <= source[0] < 10 and 0 <= source[1] < 12
            expected = images[:, :, source[0], source[1]] if inside else FILL.expand(2, 3)
            assert torch.equal(found[:, :, row, column], expected)


def interior(found: Tensor, source: Tensor) -> Tensor:
    """Where the source lies well inside of the image."""
    height, width = found.shape[-2:]
    return (source[0].abs() < (height - 3) / 2) & (source[1].abs() < (width - 3) / 2)


@pytest.mark.parametrize(
    ("name", "value", "source"),
    [
        # Where in the original, counted from the center, the pixel at (row y, column x) has come from.
        ("scale", 1.5, lambda y, x: (y / 1.5, x / 1.5)),
        ("rotation", 90.0, lambda y, x: (x, -y)),
        (
            "rotation",
            30.0,
            lambda y, x: (
                y * math.cos(math.pi / 6) + x * math.sin(math.pi / 6),
                x * math.cos(math.pi / 6) - y * math.sin(math.pi / 6),
            ),
        ),
        ("shear", 20.0, lambda y, x: (y, x + y * math.tan(math.radians(20)))),
    ],
    ids=["scale", "quarter turn", "turn", "shear"],
)
def test_geometric_transforms_take_each_pixel_from_its_place(
    name: str, value: float, source: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    images = ramps(25, 25)
    found = named(name, (25, 25)).apply(images, value)
    places = torch.stack(source(images[0, 0], images[0, 1]))
    inside = interior(found, places)
    assert int(inside.sum()) > 200
    torch.testing.assert_close(found[0, :2][:, inside], places[:, inside], atol=2e-3, rtol=0)


def test_what_comes_in_from_beyond_the_border_is_the_fill() -> None:
    found = named("rotation", (25, 25)).apply(ramps(25, 25), 45)
    torch.testing.assert_close(found[0, :, 0, 0], FILL)
    torch.testing.assert_close(found[0, :, -1, -1], FILL)


@pytest.mark.parametrize(("name", "value"), [("rotation", 33), ("shear", 20), ("scale", 0.6)])
def test_where_image_and_fill_meet_there_is_no_seam(name: str, value: float) -> None:
    images = torch.rand(1, 3, 25, 25) + FILL.view(3, 1, 1)
    found = named(name, (25, 25)).apply(images, value)
    assert bool((found >= FILL.view(3, 1, 1) - 1e-5).all())
    assert bool((found <= FILL.view(3, 1, 1) + 1 + 1e-5).all())


@pytest.mark.parametrize("size", [(24, 24), (23, 31)])
def test_a_full_turn_is_no_turn(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    rotation = named("rotation", size)
    assert torch.equal(rotation.apply(images, 360), rotation.apply(images, 0))
    assert torch.equal(rotation.apply(images, 0), images)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@pytest.mark.parametrize("normalization", [None, ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])])
def test_at_its_identity_no_bit_changes(name: str, normalization: Any) -> None:
    scale = PixelScale.of(normalization, 3)
    images = scale.inputs(torch.rand(2, 3, 24, 32))
    transform = named(name)
    assert transform.identity is not None
    assert transform.values[0] <= transform.identity <= transform.values[-1]
    assert torch.equal(scale.apply(transform, images, transform.identity), images)
    moved = scale.apply(transform, images, transform.values[-1])
    assert (moved.shape, moved.dtype) == (images.shape, images.dtype)
    assert not torch.allclose(moved, images, atol=1e-2)


@pytest.mark.parametrize("name", ["scale", "shear"])
def test_the_function_itself_is_all_but_untouched_at_its_identity(name: str) -> None:
    images, transform = torch.rand(2, 3, 24, 32), named(name)
    assert transform.identity is not None
    torch.testing.assert_close(transform.apply(images, transform.identity), images, atol=1e-5, rtol=0)


def test_brightness_and_contrast_act_on_pixels() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(named("brightness").apply(pixels, 1.5), (pixels * 1.5).clamp(max=1))
    gray = (pixels * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1).mean((1, 2)).view(2, 1, 1, 1)
    torch.testing.assert_close(named("contrast").apply(pixels, 0.5), gray + (pixels - gray) / 2, atol=1e-3, rtol=0)
    odd = torch.rand(2, 5, 8, 8)
    means = odd.mean((2, 3), keepdim=True)
    torch.testing.assert_close(named("contrast").apply(odd, 0.5), means + (odd - means) / 2, atol=1e-5, rtol=0)


def test_blur_keeps_what_is_constant_and_widens_a_point_by_its_sigma() -> None:
    blur = named("blur")
    torch.testing.assert_close(blur.apply(torch.full((1, 3, 9, 9), 0.4), 1.5), torch.full((1, 3, 9, 9), 0.4))
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    profile = blur.apply(point, 2.0)[0, 0].sum(0)
    spread = float((profile * (torch.arange(41) - 20).square()).sum() / profile.sum())
    assert spread == pytest.approx(4.0, rel=0.05)
    assert blur.apply(torch.rand(1, 1, 3, 3), 6.0).shape == (1, 1, 3, 3)


def test_photometric_transforms_undo_and_redo_the_normalization() -> None:
    scale = PixelScale.of(([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), 3)
    pixels = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(scale.pixels(scale.inputs(pixels)), pixels)
    found = scale.apply(named("brightness"), scale.inputs(pixels), 0.5)
    torch.testing.assert_close(scale.pixels(found), pixels / 2)


def test_geometric_transforms_need_no_normalization_undone() -> None:
    scale = PixelScale.of(([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), 3)
    pixels = torch.rand(2, 3, 24, 32)
    rotation = named("rotation")
    (on_pixels,) = resolve_transforms("rotation", pixels, scale.pixels(FILL.view(1, 3, 1, 1)).flatten())
    direct = scale.apply(rotation, scale.inputs(pixels), 25)
    torch.testing.assert_close(direct, scale.inputs(on_pixels.apply(pixels, 25)), atol=1e-4, rtol=1e-4)


def test_an_identity_that_is_not_declared_is_found_behind_a_normalization() -> None:
    scale = PixelScale.of(([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), 3)
    images = scale.inputs(torch.rand(2, 3, 8, 8))

    def darkened(pixels: Tensor, value: float) -> Tensor:
        pixels[1].mul_(value)  # in place, on what it was given
        return pixels

    own = Transform("darker", darkened, (0, 1))
    kept = images.clone()
    found = scale.apply(own, images, 0.5)
    assert torch.equal(images, kept)
    assert torch.equal(found[0], images[0])
    torch.testing.assert_close(scale.pixels(found)[1], scale.pixels(images)[1] / 2)
    scale.apply(replace(own, on_pixels=False), images, 0.5)
    assert torch.equal(images, kept)


def test_the_sweeps_are_those_of_the_paper_in_proportion_to_the_image() -> None:
    at_224 = {name: named(name, (224, 224)) for name in TRANSFORMS}
    assert at_224["translation"].values == tuple(float(value) for value in range(-60, 61, 5))
    assert named("translation", (112, 224)).values[::24] == (-30, 30)
    assert named("horizontal_translation", (112, 224)).values[::24] == (-60, 60)
    assert at_224["scale"].values[::16] == (1, 1.8)
    assert at_224["rotation"].values == tuple(float(value) for value in range(0, 351, 10))
    assert named("blur", (112, 112)).values[-1] == 3
    assert sum(len(at_224[name].values) for name in ("translation", "scale", "rotation")) == 78


@given(st.integers(1, 300), st.integers(1, 300))
def test_any_size_of_image_has_sweeps_of_whole_pixels_around_zero(height: int, width: int) -> None:
    transform = named("translation", (height, width))
    assert len(transform.values) >= 2
    assert 0 in transform.values
    assert transform.values[0] == -transform.values[-1]
    assert all(value.is_integer() for value in transform.values)


def test_what_is_no_transform_is_refused() -> None:
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(
        ValueError, match=r"there is no 'spin'; there are translation, scale, rotation, .* and your own"
    ):
        resolve_transforms(["scale", "spin"], images, FILL)
    with pytest.raises(ValueError, match=r"transforms=\['scale', 'scale'\]: give one or more, each name once"):
        resolve_transforms(["scale", "scale"], images, FILL)
    with pytest.raises(ValueError, match=r"transforms=\[\]"):
        resolve_transforms([], images, FILL)
    for values in ((), (1,), (2, 1), (1, 1, 2)):
        with pytest.raises(ValueError, match=r"transform 'own' has values=.*: give two or more, ascending"):
            Transform("own", lambda given, value: given, values)


def test_a_transform_has_to_keep_the_shape() -> None:
    images = torch.rand(2, 3, 8, 8)
    crop = Transform("crop", lambda given, value: given[..., 1:], (0, 1))
    with pytest.raises(ValueError, match=r"'crop' at 1 made \(2, 3, 8, 7\) of images \(2, 3, 8, 8\)"):
        PixelScale().apply(crop, images, 1)
    nothing = Transform("nothing", lambda given, value: None, (0, 1))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"'nothing' at 0\.5 made NoneType"):
        PixelScale().apply(nothing, images, 0.5)


@pytest.mark.parametrize("normalization", [([0.5, 0.5], [1.0, 1.0]), ([0.5], [0.0]), ([0.5] * 3, [1.0] * 4), ([], [])])
def test_a_normalization_that_does_not_fit_is_refused(normalization: Any) -> None:
    with pytest.raises(ValueError, match=r"does not fit images of 3 channels: give \(mean, std\)"):
        PixelScale.of(normalization, 3)


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_pixels_out_of_range_ask_for_the_normalization(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' acts on pixels of 0 to 1.*give normalization=\(mean, std\)"):
        PixelScale().apply(named(name), torch.randn(2, 3, 8, 8) * 3, 0.5)


def test_a_random_transform_of_maximization_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"regularization\.Jitter is none that is swept over values; give a name"):
        resolve_transforms([Jitter()], torch.rand(1, 3, 8, 8), torch.zeros(3))  # type: ignore[list-item]
