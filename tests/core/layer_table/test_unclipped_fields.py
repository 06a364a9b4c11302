"""Fields that no border cuts off, where the arithmetic can be done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_cnnviz.core.layer_table.unclipped_fields import Field, UnclippedFields
from lightning_cnnviz.core.tracing.operations import log_operations


def field_of_last(model: nn.Module, size: tuple[int, int]) -> Field:
    image = torch.zeros(1, 1, *size)
    operations = log_operations(model, image, values=False).operations
    return UnclippedFields(model, image, operations, values=False).of(len(operations) - 1)


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (40, 40)])
def test_a_field_does_not_depend_on_the_image(size: tuple[int, int]) -> None:
    model = nn.Sequential(*(nn.Conv2d(1, 1, (3, 5), stride=2, padding=(1, 2)) for _ in range(3)))
    field = field_of_last(model, size)
    assert field.size == (1 + 2 * (1 + 2 + 4), 1 + 4 * (1 + 2 + 4))
    assert field.jump == (8, 8)
    assert field.center == (0, 0)
    assert not field.clipped


def test_what_sees_all_of_any_image_sees_the_whole_image() -> None:
    field = field_of_last(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1)), (12, 12))
    assert (field.size, field.jump) == ((None, None), None)


def test_a_network_for_one_size_tells_what_it_can() -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[-2:] != (8, 8):
                raise ValueError("another size")
            return super().forward(x)  # type: ignore[no-any-return]

    field = field_of_last(Fixed(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)), (8, 8))
    assert field.size == (5, 5)
    assert field_of_last(Fixed(nn.Conv2d(1, 1, 7, padding=3), nn.Conv2d(1, 1, 7, padding=3)), (8, 8)).clipped
