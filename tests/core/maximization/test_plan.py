"""What is maximized of a network, and what comes of it."""

from __future__ import annotations

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
    with pytest.raises(ValueError, match="returns no scores"):
        plan_classes(model[:1], IMAGE, 2)


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
