"""MaximizationMonitor on real trainers: what it shows, by which scale, and what bad input gets."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cnnviz.callbacks.maximization import MaximizationMonitor
from lightning_cnnviz.core.maximization.maximize import strongest_images
from lightning_cnnviz.core.maximization.objectives import ClassScore
from lightning_cnnviz.core.maximization.plan import MaximizedLayer
from lightning_cnnviz.report import Curve, Gallery, Scalar
from lightning_cnnviz.sinks.memory import MemorySink


class Recording(MaximizationMonitor):
    """Keeps the results too; cheap."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.sink = MemorySink()
        options = {"steps": 8, "features": 2, "classes": 2, "invariance": 0, **options}
        super().__init__(*args, **options, sinks=[self.sink], on_error="raise")
        self.results: list[list[MaximizedLayer]] = []

    def render(self, result: list[MaximizedLayer]) -> Any:
        self.results.append(result)
        return super().render(result)


def fit(monitor: Any, model: Any = None, *, package: Any = pl, **options: Any) -> Any:
    model = LittleNet() if model is None else model
    quiet_trainer(package, callbacks=[monitor], **options).fit(model, train_loader(), val_loader())
    return model


def test_needs_no_argument() -> None:
    sink = MemorySink()
    fit(MaximizationMonitor(sinks=[sink], on_error="raise"), max_epochs=1)
    ((step, report),) = sink.reports
    assert step.epoch == 1
    galleries = {item.name: item for item in report.items if isinstance(item, Gallery)}
    assert {"features.0", "features.4", "classes", "features.4/channel 0/invariance"} <= set(galleries)
    assert len(galleries["features.0"].rows) == 6
    assert [row.caption for row in galleries["classes"].rows] == [f"class {index}" for index in range(4)]
    assert {item.name for item in report.items if isinstance(item, Curve)} >= {"features.0/steps", "classes/steps"}
    ratio = next(i.value for i in report.items if isinstance(i, Scalar) and i.name == "features.0/of_strongest_real")
    assert ratio > 0.9  # the first layer is linear: its best patch is hardly worse than any real one


def test_the_optimum_beats_the_real_images_and_they_are_those_of_the_validation() -> None:
    monitor = Recording(features=4, steps=64, images=23, penalty=0.0, transforms=None)
    model = fit(monitor, max_epochs=1)
    for layer in monitor.results[-1]:
        assert layer.strongest is not None
        best = layer.optima.activations.view(-1, layer.optima.starts).amax(1)
        assert bool((best > layer.strongest.activations).all()), layer.name
    images = torch.stack([dataset(23, seed=1)[index][0] for index in range(23)])
    classes = monitor.results[-1][-1]
    assert classes.strongest is not None
    expected = strongest_images(model, [ClassScore(0), ClassScore(1)], images)
    assert torch.allclose(classes.strongest.activations, expected.activations, atol=1e-5)


def test_schedule_and_stages() -> None:
    monitor = Recording("features.0", classes=0, every_n_epochs=2)
    fit(monitor, max_epochs=5)
    assert [step.epoch for step, _ in monitor.sink.reports] == [2, 4, 5]
    monitor = Recording("features.0", classes=0)
    trainer = quiet_trainer(callbacks=[monitor])
    trainer.validate(LittleNet(), val_loader(), verbose=False)
    trainer.test(LittleNet(), val_loader(), verbose=False)
    assert [step.stage for step, _ in monitor.sink.reports] == ["validate", "test"]


def test_the_same_network_gives_the_same() -> None:
    monitor, model = Recording(), LittleNet()
    trainer = quiet_trainer(callbacks=[monitor])
    for _ in range(2):
        trainer.validate(model, val_loader(), verbose=False)
    for one, other in zip(*monitor.results, strict=True):
        assert torch.equal(one.optima.images, other.optima.images)


def test_layers_are_read_behind_their_batchnorm_on_small_images() -> None:
    monitor = Recording()
    model = fit(monitor, max_epochs=1).eval()
    first = monitor.results[-1][0]
    assert first.optima.images.shape[1:] == (1, 3, 3)
    with torch.no_grad():
        maps = model.features[1](model.features[0](first.optima.images))
    assert torch.allclose(first.optima.activations[:2], maps[:2, 0, 1, 1], atol=1e-5)
    named = Recording("features.0")
    model = fit(named, max_epochs=1).eval()
    with torch.no_grad():
        maps = model.features[0](named.results[-1][0].optima.images)
    assert torch.allclose(named.results[-1][0].optima.activations[:2], maps[:2, 0, 1, 1], atol=1e-5)


def test_channels_classes_and_names() -> None:
    monitor = Recording(
        "features.4", objective="channel", classes=[3, 1], class_names=["a", "b", "c", "d"], features=[5], starts=1
    )
    fit(monitor, max_epochs=1)
    layer, classes = monitor.results[-1]
    assert layer.optima.objectives == ("mean of features.4, channel 5",)
    assert layer.optima.images.shape == (1, 1, 14, 14)
    assert classes.captions == ("d", "b")
    assert classes.optima.objectives == ("class 3 (d)", "class 1 (b)")


def test_values_stay_between_black_and_white() -> None:
    monitor = Recording(steps=40, learning_rate=0.5, normalization=([0.4], [0.2]))
    fit(monitor, max_epochs=1)
    for layer in monitor.results[-1]:
        assert float(layer.optima.images.min()) >= -2.0 - 1e-4
        assert float(layer.optima.images.max()) <= 3.0 + 1e-4
    assert "mean 0.4, std 0.2 (given)" in monitor.sink.reports[-1][1].notes[0]


def test_images_may_be_given() -> None:
    images = torch.rand(5, 1, 14, 14, generator=torch.Generator().manual_seed(9))
    monitor = Recording(images=images)
    fit(monitor, max_epochs=1)
    strongest = monitor.results[-1][0].strongest
    assert strongest is not None
    assert set(strongest.numbers.tolist()) <= set(range(5))


def test_a_network_without_classes_and_the_other_package() -> None:
    class Maps(LittleNet):
        def forward(self, images: Tensor) -> Tensor:
            maps: Tensor = self.features(images)
            return maps

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    monitor = Recording(classes=None)
    fit(monitor, Maps(), max_epochs=1)
    assert [layer.name for layer in monitor.results[-1]] == ["features.0", "features.4"]
    with pytest.raises(ValueError, match=r"classes=2: Maps returns, for 23 images, .*give classes=0"):
        fit(Recording(classes=2), Maps(), max_epochs=1)

    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 144, 4))

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.net(images)
            return scores

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    monitor = Recording()
    quiet_trainer(pytorch_lightning, callbacks=[monitor]).validate(Other(), val_loader(), verbose=False)
    assert [layer.name for layer in monitor.results[-1]] == ["net.0", "classes"]


def test_invariance_is_shown_for_as_many_as_asked() -> None:
    monitor = Recording("features.4", invariance=2)
    fit(monitor, max_epochs=1)
    layer = monitor.results[-1][0]
    assert [number for number, _ in layer.invariances] == [0, 1]
    assert monitor.results[-1][1].invariances == ()
    names = [item.name for item in monitor.sink.reports[-1][1].items if isinstance(item, Gallery)]
    assert names == ["features.4", "features.4/channel 0/invariance", "features.4/channel 1/invariance", "classes"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": "features.9"}, "no layer of LittleNet matches 'features.9'"),
        ({"features": [8]}, r"features=\[8\] asked for, but layer 'features.0'"),
        ({"features": 0}, "at least one feature map"),
        ({"classes": [4]}, r"classes=\[4\]: the network has 4 classes"),
        ({"classes": -1}, "classes=-1"),
        ({"steps": 0}, "steps=0"),
        ({"starts": 0}, "starts=0"),
        ({"invariance": -1}, "invariance=-1"),
        ({"objective": "neuron"}, '"unit" or "channel"'),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"penalty": -1.0}, "penalty=-1"),
        ({"images": 0}, "images=0"),
    ],
)
def test_bad_input_is_refused_before_training(options: dict[str, Any], match: str) -> None:
    steps: list[int] = []

    class Counter(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            steps.append(1)

    with pytest.raises(ValueError, match=match):
        quiet_trainer(callbacks=[Counter(), Recording(**options)]).fit(LittleNet(), train_loader(), val_loader())
    assert steps == []


def test_a_failure_is_reported_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("lightning_cnnviz.core.maximization.plan.maximize", fail)
    sink, model = MemorySink(), LittleNet()
    trainer = quiet_trainer(callbacks=[MaximizationMonitor(sinks=[sink])])
    trainer.fit(model, train_loader(), DataLoader(dataset(12, seed=1), batch_size=6))
    assert trainer.current_epoch == 2
    assert sink.reports == []
    assert any("out of memory" in record.message for record in caplog.records)
