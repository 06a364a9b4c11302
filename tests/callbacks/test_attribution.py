"""AttributionMonitor on real trainers: the same images at every look, all methods, and clear errors."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.callbacks.attribution import AttributionMonitor
from lightning_cnnviz.core.images.attribution import AttributionMaps, AttributionMethod, attribute
from lightning_cnnviz.report import Gallery, Report
from lightning_cnnviz.sinks.memory import MemorySink


class Named(TensorDataset):
    """Knows what its labels are called."""

    classes = ("hen", "cock", "jay", "kite")


class Recording(AttributionMonitor):
    """Keeps the results too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.sink = MemorySink()
        super().__init__(*args, **{"images": 3, "on_error": "raise", "sinks": [self.sink], **options})
        self.results: list[AttributionMaps] = []

    def render(self, result: AttributionMaps) -> Report:
        self.results.append(result)
        return super().render(result)


def fit(monitor: Any, model: Any = None, *, loader: Any = None, **options: Any) -> Any:
    model = LittleNet() if model is None else model
    loader = val_loader() if loader is None else loader
    quiet_trainer(callbacks=[monitor], **options).fit(model, train_loader(), loader)
    return model


def test_needs_no_argument() -> None:
    sink = MemorySink()
    fit(AttributionMonitor(sinks=[sink], on_error="raise"), max_epochs=1)
    ((_, report),) = sink.reports
    (gallery,) = report.items
    assert isinstance(gallery, Gallery)
    assert report.key(gallery) == "attribution/gradcam"
    assert [len(row.tiles) for row in gallery.rows] == [3] * 5


@pytest.mark.parametrize("method", get_args(AttributionMethod))
def test_the_same_images_at_every_look_by_the_network_as_it_is(method: AttributionMethod) -> None:
    monitor = Recording(method)
    model = fit(monitor)
    first, second = monitor.results
    assert torch.equal(first.untouched.targets, second.untouched.targets)
    assert not torch.equal(first.maps, second.maps)  # the network has learned
    sample = monitor.sample
    expected = attribute(model, sample.images, sample.labels, method)
    torch.testing.assert_close(second.maps, expected.maps)
    ((_, report), _) = monitor.sink.reports
    assert report.items[0].name == method


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_one_look_outside_of_fit(stage: str) -> None:
    monitor = Recording("guided_gradcam")
    getattr(quiet_trainer(callbacks=[monitor]), stage)(LittleNet(), val_loader(), verbose=False)
    assert [step.stage for step, _ in monitor.sink.reports] == [stage]


def test_class_names_are_those_of_the_data_set() -> None:
    monitor = Recording()
    fit(monitor, loader=DataLoader(Named(*dataset(23, seed=1).tensors), batch_size=6), max_epochs=1)
    ((_, report),) = monitor.sink.reports
    (gallery,) = report.items
    assert isinstance(gallery, Gallery)
    assert monitor.sample.labels is not None
    assert [row.caption for row in gallery.rows] == [Named.classes[label] for label in monitor.sample.labels.tolist()]


def test_several_methods_are_several_monitors() -> None:
    sink = MemorySink()
    options: dict[str, Any] = {"sinks": [sink], "on_error": "raise"}
    monitors = [AttributionMonitor(method, 1, name=method, **options) for method in get_args(AttributionMethod)]
    trainer = quiet_trainer(callbacks=monitors, max_epochs=1)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    keys = [report.key(item) for _, report in sink.reports for item in report.items]
    assert keys == [f"attribution/{method}/{method}" for method in get_args(AttributionMethod)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision: Any) -> None:
    monitor = Recording("guided_gradcam")
    fit(monitor, max_epochs=1, precision=precision)
    (found,) = monitor.results
    assert found.maps.dtype == torch.float32
    assert bool(found.maps.isfinite().all())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "lime"}, "method='lime': it is one of 'gradcam', "),
        ({"layer": "features.9"}, "no layer of LittleNet matches 'features.9'"),
        ({"layer": "conv"}, "layer='conv' means 2 layers"),
        ({"images": (torch.rand(2, 1, 14, 14), torch.tensor([9, 0]))}, r"labels \[9\] are out of range"),
        ({"images": torch.rand(2, 1, 2, 2)}, "LittleNet does not take images"),
        ({"model": "features"}, "Sequential returns, for .* images, a tensor of shape"),
    ],
)
def test_wrong_arguments_raise_before_training(options: dict[str, Any], match: str) -> None:
    model = LittleNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        fit(Recording(**{"on_error": "report", **options}), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
