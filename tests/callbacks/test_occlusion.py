"""OcclusionMonitor on real trainers: the same images at every look, what it shows, and clear errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.callbacks.occlusion import OcclusionMonitor
from lightning_cnnviz.core.images.occlusion import OcclusionMaps, occlude
from lightning_cnnviz.report import Picture, Report, Scalar
from lightning_cnnviz.sinks.memory import MemorySink


class Named(TensorDataset):
    """Knows what its labels are called."""

    classes = ("hen", "cock", "jay", "kite")


class Recording(OcclusionMonitor):
    """Keeps the results too; cheap."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.sink = MemorySink()
        options = {"images": 2, "size": 5, "stride": 5, "on_error": "raise", "sinks": [self.sink], **options}
        super().__init__(*args, **options)
        self.results: list[OcclusionMaps] = []

    def render(self, result: OcclusionMaps) -> Report:
        self.results.append(result)
        return super().render(result)


def fit(monitor: Any, model: Any = None, *, loader: Any = None, **options: Any) -> Any:
    model = LittleNet() if model is None else model
    loader = val_loader() if loader is None else loader
    quiet_trainer(callbacks=[monitor], **options).fit(model, train_loader(), loader)
    return model


def test_needs_no_argument() -> None:
    sink = MemorySink()
    monitor = OcclusionMonitor(sinks=[sink], on_error="raise")
    fit(monitor, max_epochs=1)
    ((_, report),) = sink.reports
    names = [item.name for item in report.items if isinstance(item, Picture)]
    assert names == [f"image {index}" for index in monitor.sample.indices.tolist()]
    assert len(names) == 5
    scalars = {item.name for item in report.items if isinstance(item, Scalar)}
    assert scalars == {"p_true/largest_drop", "p_true/most_probable_share", "features.5/largest_drop"}


def test_the_same_images_at_every_look_occluded_by_the_network_as_it_is() -> None:
    monitor = Recording()
    model = fit(monitor)
    first, second = monitor.results
    assert torch.equal(first.untouched.targets, second.untouched.targets)
    assert not torch.equal(first.probabilities, second.probabilities)  # the network has learned
    sample = monitor.sample
    fill = sample.images.mean((0, 2, 3))
    expected = occlude(model, sample.images, sample.labels, size=5, stride=5, fill=fill)
    torch.testing.assert_close(second.probabilities, expected.probabilities)
    torch.testing.assert_close(second.activations, expected.activations)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_one_look_outside_of_fit(stage: str) -> None:
    monitor = Recording()
    getattr(quiet_trainer(callbacks=[monitor]), stage)(LittleNet(), val_loader(), verbose=False)
    assert [step.stage for step, _ in monitor.sink.reports] == [stage]


def test_class_names_are_those_of_the_data_set() -> None:
    monitor = Recording(seed=4)
    fit(monitor, loader=DataLoader(Named(*dataset(23, seed=1).tensors), batch_size=6), max_epochs=1)
    ((_, report),) = monitor.sink.reports
    captions = [item.caption for item in report.items if isinstance(item, Picture)]
    assert monitor.sample.labels is not None
    for caption, label in zip(captions, monitor.sample.labels.tolist(), strict=True):
        assert f"true class {Named.classes[label]}: what an occluder of 5 x 5 pixels does" in caption


def test_a_layer_and_a_rectangle_of_ones_own() -> None:
    monitor = Recording(layer="features.0", size=(4, 7), stride=(2, 7))
    fit(monitor, max_epochs=1)
    (found,) = monitor.results
    assert (found.layer, found.size, tuple(found.boxes.shape)) == ("features.0", (4, 7), (6, 2, 4))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 15}, r"size=\(15, 15\): the occluder .* has to be between 1 and the images' 14 x 14 pixels"),
        ({"stride": 15}, r"stride=\(15, 15\): the step .* between 1 and the images' 14 x 14 pixels"),
        ({"stride": 6}, r"stride=\(6, 6\) is larger than the occluder, size=\(5, 5\)"),
        ({"layer": "features.9"}, "no layer of LittleNet matches 'features.9'"),
        ({"layer": "head"}, "layer 'head' has features of shape"),
        ({"images": (torch.rand(2, 1, 14, 14), torch.tensor([-2, 0]))}, r"labels \[-2\] are out of range"),
        ({"images": torch.rand(2, 1, 2, 2), "size": 1, "stride": 1}, "LittleNet does not take images"),
        ({"model": "features"}, "Sequential returns, for .* images, a tensor of shape"),
    ],
)
def test_wrong_arguments_raise_before_training(options: dict[str, Any], match: str) -> None:
    model = LittleNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        fit(Recording(**{"on_error": "report", **options}), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Heads(LittleNet):
    """Says several things of an image."""

    def forward(self, images: Tensor) -> Any:
        scores = super().forward(images)
        return {"species": scores, "sex": scores[:, :2]}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0])["species"], batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def test_what_outputs_mean_is_told_and_said() -> None:
    monitor = Recording()
    fit(monitor, Heads(), max_epochs=1)
    assert monitor.results[0].names == ("species", "sex")
    monitor = Recording(task="multiclass", output_fn=lambda output: output["species"])
    model = fit(monitor, Heads(), max_epochs=1)
    (found,) = monitor.results
    model.eval()
    with torch.no_grad():
        p = model(monitor.sample.images)["species"].softmax(1)
    assert monitor.sample.labels is not None
    torch.testing.assert_close(found.untouched.probabilities, p[range(2), monitor.sample.labels])
    assert any("(multiclass, as told)" in note for _, report in monitor.sink.reports for note in report.notes)
