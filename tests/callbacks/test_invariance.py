"""InvarianceMonitor on real trainers: the same images at every look, the trainer's own network, and clear errors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from sinks.harness import page_text
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_cnnviz.callbacks.invariance import InvarianceMonitor
from lightning_cnnviz.core.images.invariance import InvarianceCurves, measure_invariance
from lightning_cnnviz.core.images.transforms import Transform
from lightning_cnnviz.report import Picture, Report, Scalar
from lightning_cnnviz.sinks.memory import MemorySink

ROLL = Transform("roll", lambda images, value: images.roll(round(value), 2), (-2, 0, 3), "rows", 0)
NAMES = ["hen", "cock", "jay", "kite"]


class Named(TensorDataset):
    """Knows what its labels are called."""

    classes = NAMES


class Recording(InvarianceMonitor):
    """Keeps the results too; cheap."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.sink = MemorySink()
        super().__init__(*args, **{"transforms": [ROLL], "on_error": "raise", "sinks": [self.sink], **options})
        self.results: list[InvarianceCurves] = []
        self.labels: list[str] = []

    def render(self, result: InvarianceCurves) -> Report:
        self.results.append(result)
        return super().render(result)


def fit(monitor: Any, model: Any = None, *, package: Any = pl, loader: Any = None, **options: Any) -> Any:
    model = LittleNet() if model is None else model
    loader = val_loader() if loader is None else loader
    quiet_trainer(package, callbacks=[monitor], **options).fit(model, train_loader(), loader)
    return model


def test_needs_no_argument() -> None:
    sink = MemorySink()
    fit(InvarianceMonitor(sinks=[sink], on_error="raise"), max_epochs=1)
    ((step, report),) = sink.reports
    assert step.epoch == 1
    transforms = ["translation", "scale", "rotation"]
    named = [item.name for item in report.items if isinstance(item, Picture)]
    assert named == [name for each in transforms for name in (each, f"{each}/distances")]
    names = {item.name for item in report.items if isinstance(item, Scalar)}
    expected = {"features.0/area_raw", "input of head/area_unit", "p_true/area", "p_true/half_width"}
    assert {f"rotation/{name}" for name in expected} <= names
    assert report.key(report.items[0]) == "invariance/translation"


def test_the_same_images_at_every_look_measured_on_the_network_as_it_is() -> None:
    monitor = Recording(images=4)
    model = fit(monitor, max_epochs=3)
    assert [step.epoch for step, _ in monitor.sink.reports] == [1, 2, 3]
    first = monitor.results[0]
    for other in monitor.results[1:]:
        assert torch.equal(other.untouched.targets, first.untouched.targets)
        assert not torch.equal(other.sweeps[0].raw, first.sweeps[0].raw)  # the network has learned
    sample = monitor.sample
    expected = measure_invariance(model, sample.images, sample.labels, transforms=ROLL)
    torch.testing.assert_close(monitor.results[-1].sweeps[0].raw, expected.sweeps[0].raw)
    torch.testing.assert_close(monitor.results[-1].sweeps[0].probabilities, expected.sweeps[0].probabilities)
    data = dataset(23, seed=1)
    for image, label, index in zip(sample.images, first.untouched.targets, sample.indices, strict=True):
        assert torch.equal(image, data[int(index)][0])
        assert int(label) == int(data[int(index)][1])


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=lambda package: package.__name__)
def test_one_look_outside_of_fit(stage: str, package: Any) -> None:
    class Net(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = LittleNet()

        def forward(self, images: Tensor) -> Any:
            return self.net(images)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        test_step = validation_step

    monitor = Recording()
    getattr(quiet_trainer(package, callbacks=[monitor]), stage)(Net(), val_loader(), verbose=False)
    assert [step.stage for step, _ in monitor.sink.reports] == [stage]
    assert monitor.results[0].layers == ("net.features.0", "input of net.head")


def test_class_names_are_those_of_the_data_set_or_given() -> None:
    loader = DataLoader(Subset(Named(*dataset(23, seed=1).tensors), range(20)), batch_size=6)
    named, given, unnamed = (
        Recording(images=2),
        Recording(images=2, class_names=["a", "b", "c", "d"]),
        Recording(images=2),
    )
    fit(named, loader=loader, max_epochs=1)
    fit(given, loader=loader, max_epochs=1)
    fit(unnamed, max_epochs=1)
    seen = [monitor.display.class_names for monitor in (named, given, unnamed)]
    assert seen == [tuple(NAMES), ("a", "b", "c", "d"), None]


def test_given_images_without_labels_follow_the_class_that_is_found() -> None:
    images = torch.rand(2, 1, 14, 14)
    monitor = Recording(images=images)
    fit(monitor, max_epochs=1)
    (found,) = monitor.results
    assert torch.equal(monitor.sample.images, images)
    assert torch.equal(found.untouched.targets, found.untouched.predictions)
    labeled = Recording(images=(images, torch.tensor([3, 1])))
    fit(labeled, max_epochs=1)
    assert labeled.results[0].untouched.targets.tolist() == [3, 1]


def test_what_comes_in_is_the_mean_that_the_normalization_subtracts() -> None:
    images = torch.rand(2, 1, 14, 14)
    for normalization, expected in ((None, float(images.mean())), (([0.5], [0.25]), 0.0)):
        filled: list[float] = []

        def look(_module: nn.Module, inputs: Any, seen: list[float] = filled) -> None:
            seen.append(float(inputs[0][0, 0, 0, 0]))

        monitor = Recording(images=images, transforms=["translation"], normalization=normalization)
        model = LittleNet()
        handle = model.features[0].register_forward_pre_hook(look)
        fit(monitor, model, max_epochs=1)
        handle.remove()
        assert any(value == pytest.approx(expected, abs=1e-6) for value in filled)


def test_a_transform_that_draws_by_chance_does_not_disturb_training() -> None:
    noise = Transform("noise", lambda images, value: images + value * torch.rand(images.shape), (0, 1))
    weights = []
    for callbacks in ([], [Recording(transforms=[noise])]):
        pl.seed_everything(3, verbose=False)
        model = LittleNet()
        quiet_trainer(callbacks=callbacks).fit(model, train_loader(), val_loader())
        weights.append([*model.parameters(), torch.rand(2)])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_lightning_cli_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return train_loader()

        def val_dataloader(self) -> Any:
            return val_loader()

    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {tmp_path}
  callbacks:
    - class_path: lightning_cnnviz.callbacks.invariance.InvarianceMonitor
      init_args:
        layers: [features.0, features.4]
        transforms: [translation, blur]
        images: 2
        normalization: [[0.0], [1.0]]
        class_names: [hen, cock, jay, kite]
    - class_path: lightning_cnnviz.callbacks.occlusion.OcclusionMonitor
      init_args: {{images: 2, size: [5, 6], stride: 5, layer: features.4}}
    - class_path: lightning_cnnviz.callbacks.attribution.AttributionMonitor
      init_args: {{images: 2, method: saliency}}
"""
    )
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = LightningCLI(LittleNet, Data, args=["fit", "--config", str(config)], save_config_callback=None)
    (monitor,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, InvarianceMonitor)]
    assert (monitor.drawn.images, list(monitor.transforms)) == (2, ["translation", "blur"])
    (page,) = tmp_path.rglob("index.html")
    text = page_text(page)
    assert all(name in text for name in ("translation", "blur", "5 x 6 pixels", "Saliency"))


class NoLogits(LittleNet):
    def forward(self, images: Tensor) -> Any:
        return self.features(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


class Picky(LittleNet):
    """Takes no image below eight pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.features.append(nn.MaxPool2d(4))


@pytest.mark.parametrize(
    ("options", "model", "match"),
    [
        ({"layers": "features.9"}, LittleNet, "no layer of LittleNet matches 'features.9'"),
        ({"transforms": ["twist"]}, LittleNet, "there is no 'twist'"),
        ({"images": (torch.rand(2, 1, 14, 14), torch.tensor([0, 4]))}, LittleNet, r"labels \[4\] are out of range"),
        ({"images": (torch.rand(2, 1, 14, 14), torch.tensor([0]))}, LittleNet, "one whole number for each of the 2"),
        ({"images": torch.rand(2, 1, 6, 6)}, Picky, r"Picky does not take images of shape \(1, 6, 6\)"),
        ({"images": torch.rand(2, 3, 14, 14)}, LittleNet, r"LittleNet does not take images of shape \(3, 14, 14\)"),
        ({"on_error": "raise"}, NoLogits, "NoLogits returns, for .* images, a tensor of shape"),
        ({"normalization": ([0.5] * 2, [1.0] * 2)}, LittleNet, "does not fit images of 1 channels"),
        ({"images": 0}, LittleNet, "images=0: give 1 or more"),
    ],
)
def test_wrong_arguments_raise_before_training(options: dict[str, Any], model: Any, match: str) -> None:
    network = model()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        fit(Recording(**{"on_error": "report", **options}), network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
