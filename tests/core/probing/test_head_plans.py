from __future__ import annotations

from typing import Any

import torch
from core.probing.test_head_labels import Two
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.probing.head_plans import HeadPlans
from lightning_cnnviz.core.probing.probe import LayerProbe
from lightning_cnnviz.core.probing.protocols import Protocol


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.heads = nn.Conv2d(3, 4, 3), Two()

    def forward(self, images: Tensor) -> Any:
        return self.heads(self.conv(images))


def items(count: int) -> list[dict[str, Tensor]]:
    images = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return [
        {"image": image, "species": torch.tensor(place % 3), "sex": image.mean()} for place, image in enumerate(images)
    ]


def test_each_head_is_probed_and_its_control_stays() -> None:
    net = Net()
    layers = select_layers(net, "conv")
    loader: Any = DataLoader(items(30), batch_size=8)  # type: ignore[arg-type]
    plans = HeadPlans(net, layers, Protocol(splits=2), (loader, None), pool=100)
    assert plans.alone is None
    found = plans.fit([plans.read(net, control=True)])
    assert isinstance(found, ByHead)
    assert found.names == ("species", "sex")
    assert [each.scores[0].heads for each in found.results] == [("svm", "softmax"), ("ridge",)]
    later = plans.fit([plans.read(net)])
    for before, after in zip(found.results, later.results, strict=True):
        assert torch.equal(before.scores[0].accuracy, after.scores[0].accuracy)
        assert before.control is not None
        assert after.control is before.control
    # Two ranks that share the images.
    shared = plans.fit([plans.read(net, part=(rank, 2)) for rank in range(2)])
    torch.testing.assert_close(shared.results[1].scores[0].accuracy, found.results[1].scores[0].accuracy)


def test_one_head_is_probed_as_ever() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    images, labels = torch.rand(20, 3, 6, 6), torch.arange(20) % 2
    data = list(zip(images, labels, strict=True))
    loader: Any = DataLoader(data, batch_size=8)  # type: ignore[arg-type]
    plans = HeadPlans(net, select_layers(net, "conv"), Protocol(splits=1), (loader, None), pool=100)
    assert plans.alone is not None
    assert isinstance(plans.fit([plans.read(net)]), LayerProbe)
