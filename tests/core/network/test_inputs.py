"""Images of 8 bits for networks that bring them to scale themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from lightning_cnnviz.core.deconvnet.projection import Unit, project
from lightning_cnnviz.core.images.attribution import attribute
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.network.inputs import all_as_floats, as_floats

IMAGES = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


class Scaling(nn.Module):
    """A network that takes pixels of 8 bits."""

    def __init__(self, scale: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.scale = scale

    def forward(self, images: Tensor) -> Any:
        return self.head(self.conv(self.scale(images)).relu().mean((2, 3)))


def divided(images: Tensor) -> Tensor:
    return images.float() / 255 - 0.5


def by_type(images: Tensor) -> Any:
    return v2.ToDtype(torch.float32, scale=True)(images) - 0.5


@pytest.mark.parametrize(("scale", "divisor"), [(divided, 1), (by_type, 255)])
def test_floats_are_those_of_which_the_network_says_the_same(scale: Any, divisor: int) -> None:
    model = Scaling(scale)
    floats = as_floats(model, IMAGES)
    assert torch.equal(floats, IMAGES.float() / divisor)
    torch.testing.assert_close(model(floats), model(IMAGES))
    assert as_floats(model, floats) is floats
    by_number = all_as_floats(model, {7: IMAGES[1]})
    assert torch.equal(by_number[7], floats[1])
    assert all_as_floats(model, {}) == {}


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="says something else of uint8 images"):
        as_floats(Scaling(lambda images: images.float() / (2 if images.dtype == torch.uint8 else 255)), IMAGES)
    with pytest.raises(ValueError, match="does not take images"):
        as_floats(nn.Conv2d(3, 1, 3), IMAGES)


@pytest.mark.parametrize("scale", [divided, by_type])
def test_views_of_changed_images_say_what_the_network_says_of_pixels(scale: Any) -> None:
    model = Scaling(scale)
    found = occlude(model, IMAGES, torch.tensor([0, 2]), "conv", size=6, stride=6, fill=0.0)
    p = model(IMAGES).softmax(1).detach()
    torch.testing.assert_close(found.untouched.probabilities, p[range(2), [0, 2]])
    covered = IMAGES.clone()
    covered[:, :, 6:, :6] = 0
    p = model(covered).softmax(1).detach()
    torch.testing.assert_close(found.probabilities[:, 1, 0], p[range(2), [0, 2]])
    slope = attribute(model, IMAGES, torch.tensor([0, 2]), "saliency").maps
    floats = as_floats(model, IMAGES).requires_grad_()
    (expected,) = torch.autograd.grad(model(floats)[range(2), [0, 2]].sum(), floats)
    torch.testing.assert_close(slope, expected.abs())
    units = [Unit(1, "conv", 2, 3, 4)]
    both = [project(model, images, units).pixels[0] for images in (IMAGES, floats.detach())]
    assert torch.equal(*both)
    assert bool(both[0].any())
