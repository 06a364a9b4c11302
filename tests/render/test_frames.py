"""Patches of signals as curves, of volumes as slices, in tiles of one size."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.render.frames import Frame
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patch_slices import draw_patch_slices, patch_slices_size
from lightning_cnnviz.render.signals import CHART_SIZE, WHOLE_SIZE, draw_signal, place_on_signal

PLAIN = Normalization((0.0,), (1.0,))
BEYOND = torch.tensor([203, 213, 232], dtype=torch.uint8).view(3, 1, 1)


def is_color(pixels: Tensor, color: Tensor) -> Tensor:
    return (pixels == color).all(0)


def ink(pixels: Tensor) -> Tensor:
    """Where there are lines in color: axes, letters and ground are gray, and what is beyond the ends is light."""
    values = pixels.int()
    return (values.amax(0) - values.amin(0) > 60) & ~is_color(pixels, BEYOND)


def test_curves_rise_where_values_do_and_end_where_the_signal_does() -> None:
    rising = torch.linspace(0, 1, 20)[None]
    frame = Frame.of([rising, torch.zeros(1, 20)])
    assert (frame.size, frame.lengths, frame.span, frame.is_image) == (CHART_SIZE, (20,), (0.0, 1.0), False)
    pixels = frame.patch(rising, torch.tensor([0, 5, 1, 25]), PLAIN)
    rows, columns = ink(pixels).nonzero(as_tuple=True)
    first, last = rows[columns == columns.min()].float().mean(), rows[columns == columns.max()].float().mean()
    assert first - last > 0.6 * CHART_SIZE[0]  # rows count from above
    assert not is_color(pixels, BEYOND).any()


def test_a_patch_that_is_cut_off_lies_at_its_end_of_the_axis() -> None:
    frame = Frame.of([torch.ones(1, 20), torch.zeros(1, 10)])
    for box, cut in (([0, 0, 1, 10], "left"), ([0, 90, 1, 100], "right")):
        pixels = frame.patch(torch.linspace(0, 1, 10)[None], torch.tensor(box), PLAIN)
        beyond, drawn = is_color(pixels, BEYOND).any(0).nonzero(), ink(pixels).any(0).nonzero()
        before = float(beyond.float().mean()) < float(drawn.float().mean())
        assert before == (cut == "left")
        assert len(beyond) > 0.35 * CHART_SIZE[1]


def test_chosen_channels_alone_are_drawn_and_scaled() -> None:
    values = torch.stack([torch.linspace(0, 1, 8), torch.full((8,), 100.0)])
    assert Frame.of([values]).span == (0.0, 100.0)
    assert Frame.of([values], PLAIN.shows(0)).span == (0.0, 1.0)
    both, first = (Frame.of([values], each).notes(each)[0] for each in (PLAIN, PLAIN.shows(0)))
    assert "a line for each of 2 channels" in both
    assert "channel 0 of 2" in first


def test_a_place_on_the_whole_signal_is_where_its_values_are_drawn() -> None:
    values = torch.zeros(1, 200)
    values[0, 120:140] = 1
    pixels = draw_signal(values, low=0, high=1, size=WHOLE_SIZE)
    top, left, bottom, right = place_on_signal(120, 140, 200, 0, 1)
    upper = ink(pixels)[: WHOLE_SIZE[0] // 2].any(0).nonzero().flatten()
    assert left - 3 <= int(upper.min()) and int(upper.max()) <= right + 3  # noqa: PT018
    assert int(upper.max()) - int(upper.min()) > 0.8 * (right - left)
    assert (top, bottom) < (bottom, WHOLE_SIZE[0])


def test_projections_of_signals_are_scaled_by_themselves_about_zero() -> None:
    frame = Frame.of([torch.ones(1, 11)])
    spike = torch.zeros(1, 11)
    spike[0, 5] = -2e-3
    pixels = frame.projection(spike, torch.tensor([0, 0, 1, 11]))
    rows, columns = ink(pixels).nonzero(as_tuple=True)
    lowest = columns[rows == rows.max()].float().mean()
    assert abs(float(lowest) - CHART_SIZE[1] * 0.58) < 0.1 * CHART_SIZE[1]
    blank = frame.projection(torch.zeros(1, 11), torch.tensor([0, 0, 1, 11]))
    assert blank.shape == (3, *CHART_SIZE)


def test_three_slices_go_through_the_middle_of_the_field() -> None:
    lengths = (50, 60, 70)  # so large that nothing is enlarged
    volume = torch.zeros(1, *lengths)
    volume[0, 25], volume[0, :, 30], volume[0, :, :, 35] = 0.25, 0.5, 0.75
    frame = Frame.of([volume])
    assert frame.size == patch_slices_size(lengths, clip=False)
    assert frame.said == "50 x 60 x 70 px"
    pixels = frame.patch(volume, torch.tensor([0, 0, 0, 50, 60, 70]), PLAIN)[0]
    body = pixels[15:]
    axial, coronal, sagittal = body[:60, :70], body[75:125, :70], body[:60, 75:125]
    for panel, expected in ((axial, volume[0, 25]), (coronal, volume[0, :, 30]), (sagittal, volume[0, :, :, 35].T)):
        assert torch.equal(panel, (expected * 255).round().to(torch.uint8))


def test_what_a_border_cuts_off_is_tinted_on_its_side() -> None:
    lengths, part = (50, 60, 70), torch.ones(1, 20, 60, 70)
    before = draw_patch_slices(part, (0, 0, 0, 20, 60, 70), lengths, PLAIN.to_pixels, clip=True)
    behind = draw_patch_slices(part, (80, 0, 0, 100, 60, 70), lengths, PLAIN.to_pixels, clip=True)
    for pixels, rows in ((before, slice(15, 45)), (behind, slice(35, 65))):
        tinted = is_color(pixels[:, 75:, :70], BEYOND).all(1).nonzero().flatten()
        assert tinted.tolist() == list(range(rows.start, rows.stop))


def test_images_are_their_own_pixels() -> None:
    frame = Frame.of([torch.rand(3, 5, 7), torch.rand(3, 4, 7)])
    assert (frame.size, frame.is_image, frame.said) == ((5, 7), True, "5 x 7 px")
    patch = torch.rand(3, 5, 7)
    assert torch.equal(frame.patch(patch, torch.tensor([0, 0, 5, 7]), PLAIN), PLAIN.to_pixels(patch))
