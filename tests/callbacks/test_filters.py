from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.filters import FilterMonitor, RenormalizeFilters
from lightning_cnnviz.report import Gallery


def fitted(callbacks: list[Any], **options: Any) -> LittleNet:
    pl.seed_everything(5, verbose=False)
    model = LittleNet()
    quiet_trainer(callbacks=callbacks, **options).fit(model, train_loader(), val_loader())
    return model


def rms(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).square().mean(1).sqrt()


def test_the_first_layer_is_shown_after_each_epoch() -> None:
    sink = MemorySink()
    model = fitted([FilterMonitor(sinks=[sink], on_error="raise")])
    assert [step.epoch for step, _ in sink.reports] == [1, 2]
    report = sink.reports[-1][1]
    (gallery,) = (item for item in report.items if isinstance(item, Gallery))
    assert report.key(gallery) == "filters/features.0"
    strengths = [row.numbers["RMS"] for row in gallery.rows]
    assert strengths == pytest.approx(rms(model.features[0].weight).tolist())  # type: ignore[arg-type]


def test_deeper_layers_on_request() -> None:
    sink = MemorySink()
    monitor = FilterMonitor("features.4", features=[1, 6], channels=4, sinks=[sink], on_error="raise")
    quiet_trainer(callbacks=[monitor]).validate(LittleNet(), val_loader(), verbose=False)
    ((_, report),) = sink.reports
    gallery = report.items[0]
    assert isinstance(gallery, Gallery)
    assert [(row.caption, len(row.tiles)) for row in gallery.rows] == [("filter 1", 4), ("filter 6", 4)]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="channels=0: show 1 or more"):
        FilterMonitor(channels=0)
    with pytest.raises(ValueError, match=r"features=\[6\] asked for, but layer 'features.0' has 6 feature maps"):
        fitted([FilterMonitor(features=[6], sinks=[MemorySink()])])
    with pytest.raises(ValueError, match=r"Did you mean 'features\.0'"):
        fitted([FilterMonitor("feature.0", sinks=[MemorySink()])])


class Watch(pl.Callback):
    """Sees the filters as each step, with what follows it, leaves them; comes after the callback under test."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seen.append(
            torch.stack([rms(pl_module.features[0].weight).max(), rms(pl_module.features[4].weight).max()])
        )


def test_the_first_layer_is_kept_within_the_radius_after_every_step() -> None:
    free, kept = Watch(), Watch()
    fitted([free])
    fitted([RenormalizeFilters(0.05), kept])
    assert float(torch.stack(free.seen)[:, 0].min()) > 0.05
    assert float(torch.stack(kept.seen)[:, 0].max()) <= 0.05 + 1e-6
    assert float(torch.stack(kept.seen)[:, 1].min()) > 0.05  # chosen is the first layer alone


def test_chosen_layers_are_kept_within_the_radius() -> None:
    kept = Watch()
    fitted([RenormalizeFilters(0.05, layers="conv"), kept])
    assert float(torch.stack(kept.seen).max()) <= 0.05 + 1e-6


def test_a_radius_that_nothing_exceeds_changes_nothing() -> None:
    plain, watched = fitted([]).state_dict(), fitted([RenormalizeFilters(100.0, layers="conv")]).state_dict()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_nothing_happens_while_gradients_accumulate() -> None:
    class Before(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.strong = float(rms(pl_module.features[0].weight).max())

    before, watch = Before(), Watch()
    fitted([before, RenormalizeFilters(0.1), watch], accumulate_grad_batches=3)
    largest = torch.stack(watch.seen)[:, 0].tolist()
    assert largest[:2] == pytest.approx([before.strong] * 2)
    assert max(largest[2:]) <= 0.1 + 1e-6


class TwoNetworks(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)


def test_of_several_networks_it_wants_a_name_and_no_way_to_call_them() -> None:
    trainer = quiet_trainer()
    trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(ValueError, match=r'several .* \("one", "two"\); define forward, or give model="<name>"$'):
        RenormalizeFilters().setup(trainer, TwoNetworks(), "fit")


def test_it_works_in_either_package_and_leaves_evaluation_alone() -> None:
    callback = RenormalizeFilters()
    assert isinstance(callback, pytorch_lightning.Callback)
    model = LittleNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quiet_trainer(callbacks=[callback]).validate(model, val_loader(), verbose=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_renormalizing_says_that_it_changes_training(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fitted([RenormalizeFilters()], max_epochs=1)
    assert any(
        "changes training: filters of features.0 are kept within an RMS of 0.1" in r.message for r in caplog.records
    )


def test_what_cannot_be_renormalized_is_refused() -> None:
    with pytest.raises(ValueError, match="radius=-1: give a positive number"):
        RenormalizeFilters(-1)

    with pytest.raises(
        ValueError, match=r"layer 'features\.0': the weights that ParametrizedConv2d uses are computed by"
    ):
        fitted_with(nn.utils.parametrizations.spectral_norm)


def test_filters_are_kept_within_the_radius_whatever_computes_them() -> None:
    model = fitted_with(nn.utils.parametrizations.weight_norm)
    assert float(rms(model.features[0].weight).max()) <= 0.05 + 1e-6  # type: ignore[arg-type,union-attr]


def fitted_with(norm: Any) -> LittleNet:
    model = LittleNet()
    norm(model.features[0])
    quiet_trainer(callbacks=[RenormalizeFilters(0.05)]).fit(model, train_loader(), val_loader())
    return model
