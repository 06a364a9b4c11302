from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.probing import online_passes
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.online import OnlineProbes, OnlineScores
from lightning_cnnviz.core.probing.online_passes import OnlineLearner, OnlineTest


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = checkpoint(self.second, self.first(images).relu(), use_reentrant=False)
        return self.head(maps.relu().mean((2, 3)))  # type: ignore[no-any-return]


def data(count: int = 12) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return images + labels.view(-1, 1, 1, 1), labels


def reader(net: Net) -> MapReader:
    return MapReader(net, select_layers(net), pool=50)


def learned(net: Net, steps: int = 40) -> OnlineProbes:
    (images, labels), learner = data(), OnlineLearner(reader(net))
    for _ in range(steps):
        with learner.batch(images, labels):
            net(images)
    assert learner.probes is not None
    return learner.probes


def test_probes_learn_from_the_steps_first_pass_alone() -> None:
    net, (images, labels) = Net(), data()
    learner = OnlineLearner(reader(net))
    with learner.batch(images, labels):
        loss = net(images).sum()
        net(1 - images)
    loss.backward()  # runs the second layer again
    assert learner.probes is not None
    assert learner.probes.batches == 1
    assert learner.probes.dimensions == {"first": 4 * 12, "second": 6 * 8}
    plain = OnlineProbes(learner.probes.dimensions)
    features = reader(net)
    with features.reading(images):
        net(images)
    plain.update(features.values, labels)
    assert torch.equal(plain._weights, learner.probes._weights)
    with pytest.raises(ValueError, match="gave no features of so many"), learner.batch(images, labels):
        pass
    assert learner.probes.batches == 1


def examined(net: Net, probes: OnlineProbes | None, places: Tensor) -> OnlineTest:
    (images, labels), test = data(), OnlineTest(reader(net), probes)
    for part in places.split(5):
        with torch.inference_mode(), test.batch(images[part], part, labels[part]):
            net(images[part])
    return test


def test_each_image_counts_once_in_any_order() -> None:
    net = Net()
    probes = learned(net, 3)
    once = examined(net, probes, torch.arange(12)).compute()
    again = examined(net, probes, torch.tensor([3, 1, 3, *torch.randperm(12).tolist()])).compute()
    assert once.images == again.images == 12
    assert torch.equal(once.accuracy, again.accuracy)
    assert (once.layers, once.classes, once.batches) == (("first", "second"), 3, 3)
    assert examined(net, learned(net), torch.arange(12)).compute().accuracy.tolist() == [1, 1]


def test_ranks_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    probes = learned(net, 3)
    mine, theirs = (examined(net, probes, torch.arange(12)[rank::2]) for rank in range(2))
    answers = iter([torch.cat(theirs._said), torch.cat(theirs._indices), torch.tensor(0), probes.left_out + 2])
    monkeypatch.setattr(online_passes, "gathered", lambda own: [own, next(answers)])
    mine.merge()
    merged, whole = mine.compute(), examined(net, probes, torch.arange(12)).compute()
    assert merged.images == 12
    assert torch.equal(merged.accuracy, whole.accuracy)
    assert merged.left_out.tolist() == [2, 2]


def test_what_cannot_be_tested_is_named() -> None:
    net, (images, labels) = Net(), data()
    test = OnlineTest(reader(net), learned(net, 1))
    with pytest.raises(ValueError, match="needs the class of each image"), test.batch(images, labels, None):
        net(images)
    with pytest.raises(ValueError, match="had no batch"):
        test.compute()
    with pytest.raises(ValueError, match="had no batch"):
        examined(net, None, torch.arange(12)).compute()


@pytest.mark.fault(
    "numbers",
    "features of a training image are NaN, infinite or 1e30",
    "online probes go on as if they had seen the other images alone, and say how many were left out; while features of "
    "tested images are so, the layer's accuracy is NaN",
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30], ids=str)
def test_features_that_are_not_finite_are_not_learned_from(value: float) -> None:
    net, (images, labels) = Net(), data()
    probes, spared = learned(net, 3), learned(net, 3)
    broken = images.clone()
    broken[4] = value
    with OnlineLearner(reader(net), probes).batch(broken, labels):
        net(broken)
    whole = torch.arange(12) != 4
    with OnlineLearner(reader(net), spared).batch(images[whole], labels[whole]):
        net(images[whole])
    for name, one in probes.state_dict().items():
        if isinstance(one, Tensor) and name != "left_out":
            torch.testing.assert_close(one, spared.state_dict()[name])
    lost, found = (examined_on(net, probes, each, labels) for each in (broken, images))
    assert lost.accuracy.isnan().all()
    assert lost.left_out.tolist() == [1, 1]
    assert found.accuracy.isfinite().all()


def examined_on(net: Net, probes: OnlineProbes | None, images: Tensor, labels: Tensor) -> OnlineScores:
    test = OnlineTest(reader(net), probes)
    with test.batch(images, torch.arange(len(images)), labels):
        net(images)
    return test.compute()


def test_shapes_of_scores_must_fit() -> None:
    with pytest.raises(ValueError, match="scores of 3 layers have shapes"):
        OnlineScores(
            layers=("a", "b", "c"),
            accuracy=torch.rand(2),
            images=3,
            classes=3,
            batches=1,
            left_out=torch.zeros(2, dtype=torch.int64),
        )


def of_labels(labels: Tensor) -> Tensor:
    """Several labels an image."""
    return torch.stack([labels < 2, labels % 2 == 0], 1).to(torch.int8)


def of_values(labels: Tensor) -> Tensor:
    return torch.stack([50 + 7.0 * labels, -labels], 1)


@pytest.mark.parametrize(
    ("form", "measure", "chance"), [(of_labels, "mean average precision", 2 / 3), (of_values, "R2", 0)]
)
def test_labels_and_values_are_learned_and_tested(form: Any, measure: str, chance: float) -> None:
    net, (images, labels) = Net(), data()
    targets, learner = form(labels), OnlineLearner(reader(net))
    for _ in range(150):
        with learner.batch(images, targets):
            net(images)
    found = examined_on(net, learner.probes, images, targets)
    assert (found.measure, found.classes, found.images) == (measure, 2, 12)
    assert found.chance == pytest.approx(chance)
    assert bool((found.accuracy > 0.97).all())
    said, again = OnlineTest(reader(net), learner.probes), OnlineTest(reader(net), learner.probes)
    order = torch.tensor([*torch.randperm(12).tolist(), 3, 1])
    for test, places in ((said, torch.arange(12)), (again, order)):
        for part in places.split(5):
            with test.batch(images[part], part, targets[part]):
                net(images[part])
    torch.testing.assert_close(said.compute().accuracy, again.compute().accuracy)


def test_pixels_are_learned_and_tested() -> None:
    net = Net()
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    maps = torch.zeros(12, 8, 8, dtype=torch.int64)
    for number in range(12):
        maps[number, :, number % 5 :] = 1
    images = images + 3 * maps[:, None]
    learner = OnlineLearner(reader(net))
    for _ in range(60):
        with learner.batch(images, maps):
            net(images)
    assert learner.probes is not None
    assert learner.probes.dimensions == {"first": 4, "second": 6}
    found = examined_on(net, learner.probes, images, maps)
    assert (found.pixels, found.images, found.classes) == (8, 12, 2)
    assert float(found.accuracy[0]) > 0.7


def test_zeros_and_ones_that_turn_out_to_be_values_begin_anew() -> None:
    net, (images, labels) = Net(), data()
    learner = OnlineLearner(reader(net))
    for targets, kind in ((labels % 2, "classes"), (labels * 0.5, "values"), (labels % 2, "values")):
        with learner.batch(images, targets[:, None].float()):
            net(images)
        assert learner.probes is not None
        assert learner.probes.kind == kind
    assert learner.probes.batches == 2
    with (
        pytest.raises(ValueError, match="2 values an image, where there were 1"),
        learner.batch(images, of_values(labels)),
    ):
        net(images)
    with pytest.raises(ValueError, match="labels are of values, but probes have learned to tell classes"):
        examined_on(net, learned(net, 1), images, of_values(labels))
