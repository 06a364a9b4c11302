"""Boxes of any number of axes."""

from __future__ import annotations

import pytest
import torch

from lightning_cnnviz.core.tracing.boxes import box_size, box_slices, cropped, volume_of


@pytest.mark.parametrize(
    ("box", "size"), [((1, 2, 4, 8), (3, 6)), ((0, 5, 1, 9), (1, 4)), ((1, 2, 3, 2, 5, 7), (1, 3, 4))]
)
def test_sizes(box: tuple[int, ...], size: tuple[int, ...]) -> None:
    assert box_size(box) == size
    assert volume_of(box) == torch.zeros(size).numel()


def test_a_signal_is_an_image_of_one_row() -> None:
    signal, image, volume = torch.rand(2, 9), torch.rand(2, 6, 9), torch.rand(2, 4, 6, 9)
    assert box_slices((0, 3, 1, 7), 1) == (slice(3, 7),)
    assert torch.equal(cropped(signal, (0, 3, 1, 7)), signal[:, 3:7])
    assert torch.equal(cropped(image, (2, 3, 5, 7)), image[:, 2:5, 3:7])
    assert torch.equal(cropped(volume, (1, 2, 3, 2, 5, 7)), volume[:, 1:2, 2:5, 3:7])
    assert cropped(image, (2, 3, 5, 7)).untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
