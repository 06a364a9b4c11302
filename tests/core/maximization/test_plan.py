"""What is maximized of a network, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.maximization.objectives import ChannelActivation, ClassScore, UnitActivation
from lightning_cnnviz.core.maximization.parametrization import Box
from lightning_cnnviz.core.maximization.plan import maximize_plan, plan_classes, plan_layers


def net() -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()) for _ in range(6)]
    return nn.Sequential(nn.Conv2d(1, 4, 3), *convolutions, nn.Flatten(), nn.LazyLinear(3)).eval()


IMAGE = torch.zeros(1, 1, 20, 20)


def test_four_layers_from_the_first_to_the_last_on_images_of_their_units_fields() -> None:
    model = net()
    model(IMAGE)
    plans = plan_layers(model, IMAGE, features=2)
    assert [plan.name for plan in plans] == ["0", "2.0", "4.0", "6.0"]
    # Seven convolutions of 3 x 3: a unit of the n-th sees 2 n + 1 pixels.
    assert [plan.size for plan in plans] == [(1, side, side) for side in (3, 7, 11, 15)]
    assert all(isinstance(objective, UnitActivation) for plan in plans for objective in plan.objectives)
    assert plans[0].captions == ("channel 0", "channel 1")


def test_feature_maps_of_a_classifier_are_called_as_its_classes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    plans = plan_layers(model.eval(), IMAGE, features=[2, 0], class_names=("hen", "cock", "duck"))
    # The first has as many, and is no classifier.
    assert [plan.captions for plan in plans] == [("channel 0", "channel 2"), ("hen", "duck")]
    others = plan_layers(model, IMAGE, features=[0], class_names=("hen",))
    assert [plan.captions for plan in others] == [("channel 0",), ("channel 0",)]


def test_channels_are_maximized_on_whole_images() -> None:
    model = net()
    model(IMAGE)
    (plan,) = plan_layers(model, IMAGE, "2.0", [3], objective="channel")
    assert (plan.size, plan.captions) == ((1, 20, 20), ("channel 3",))
    assert isinstance(plan.objectives[0], ChannelActivation)


def test_classes_have_their_names_or_numbers() -> None:
    model = net()
    model(IMAGE)
    plan = plan_classes(model, IMAGE, [2, 0], ["hen"])
    assert plan is not None
    assert plan.captions == ("class 2", "hen")
    assert all(isinstance(objective, ClassScore) for objective in plan.objectives)
    every = plan_classes(model, IMAGE, None)
    assert every is not None
    assert len(every.objectives) == 3
    assert plan_classes(model, IMAGE, 0) is None
    assert plan_classes(model[:1], IMAGE, None) is None
    with pytest.raises(ValueError, match=r"classes=\[3\]: the network has 3 classes"):
        plan_classes(model, IMAGE, [3])
    with pytest.raises(ValueError, match=r"classes=2: Sequential returns, for 1 images, .*give classes=0 for none"):
        plan_classes(model[:1], IMAGE, 2, labels=torch.tensor([1]))


class Heads(nn.Module):
    """Two heads, and maps of scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.conv(images)
        return {"species": self.head(maps.relu().mean((2, 3))), "place": maps}


SEVERAL = torch.tensor([[1.0, 1.0, 0.0]])


@pytest.mark.parametrize("which", ["species", "place"])
def test_class_scores_are_those_of_the_task(which: str) -> None:
    model, images = Heads(), torch.rand(4, 1, 12, 12)
    maps = torch.zeros(1, 10, 10, dtype=torch.int64)
    labels = SEVERAL if which == "species" else maps
    plan = plan_classes(model, IMAGE, [1], labels=labels, output_fn=lambda output: output[which])
    assert plan is not None
    assert plan.task is not None
    assert plan.task.kind == ("multilabel" if which == "species" else "segmentation")
    plan = replace(plan, size=(1, 12, 12))
    made = maximize_plan(model, plan, images, bounds=Box([0.0], [1.0]), starts=1, steps=4)
    assert made.task == plan.task
    with torch.no_grad():
        own, real = model(made.optima.images)[which], model(images)[which]
    if which == "place":
        own, real = own.mean((2, 3)), real.mean((2, 3))
    torch.testing.assert_close(made.optima.activations, own[:, 1])
    assert made.strongest is not None
    torch.testing.assert_close(made.strongest.activations[0], real[:, 1].max())
    assert plan_classes(model, IMAGE, None) is None
    with pytest.raises(ValueError, match=r"dict of 2 tensors.*output_fn.*give classes=0"):
        plan_classes(model, IMAGE, 2)


def test_the_climb_stays_in_bounds_and_beats_the_real_images() -> None:
    model = net()
    images: Tensor = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    model(IMAGE)
    (plan,) = plan_layers(model, IMAGE, "0", 2)
    made = maximize_plan(model, plan, images, bounds=Box([0.0], [1.0]), steps=40, penalty=0.0, invariance=0)
    assert bool(((made.optima.images >= 0) & (made.optima.images <= 1)).all())
    assert made.strongest is not None
    best = made.optima.activations.view(2, -1).amax(1)
    assert bool((best >= made.strongest.activations).all())
    assert made.invariances == ()
