from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from callbacks.littlenet import LittleNet, quiet_trainer
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.online_probe import OnlineProbeMonitor
from lightning_cnnviz.report import Report, Scalar


def stripes(count: int, seed: int = 0) -> TensorDataset:
    """Noise, and of each class a bright row."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 14, 14, generator=generator)
    images[torch.arange(count), 0, 3 * labels + 1] += 0.8
    return TensorDataset(images, labels)


def loader(count: int = 64, seed: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(stripes(count, seed), **{"batch_size": 8, **options})


def monitor(sink: MemorySink, *layers: str, **options: Any) -> OnlineProbeMonitor:
    return OnlineProbeMonitor(list(layers) or None, sinks=[sink], on_error="raise", **options)


def fitted(callbacks: Any, model: LittleNet | None = None, **options: Any) -> LittleNet:
    pl.seed_everything(6, verbose=False)
    model = LittleNet() if model is None else model
    if not isinstance(callbacks, list):
        callbacks = [callbacks]
    paths = {"ckpt_path": options.pop("ckpt_path")} if "ckpt_path" in options else {}
    quiet_trainer(callbacks=callbacks, **options).fit(model, loader(), loader(23, 1), **paths)
    return model


def numbers(report: Report) -> dict[str, float]:
    return {item.name: item.value for item in report.items if isinstance(item, Scalar)}


def weights(found: OnlineProbeMonitor) -> Tensor:
    assert found.probes is not None
    return found.probes._weights


class Counting(pl.Callback):
    """Counts passes of more than one image, and looks for hooks."""

    def __init__(self) -> None:
        self.passes = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        def count(_module: Any, inputs: Any) -> None:
            self.passes += len(inputs[0]) > 1

        pl_module.features[0].register_forward_pre_hook(count)


def test_probes_learn_without_a_pass_of_their_own() -> None:
    sink, plain, watched = MemorySink(), Counting(), Counting()
    fitted([plain], max_epochs=12)
    online = monitor(sink)
    fitted([online, watched], max_epochs=12)
    assert watched.passes == plain.passes > 0
    assert [step.epoch for step, _ in sink.reports] == list(range(1, 13))
    first, last = numbers(sink.reports[0][1]), numbers(sink.reports[-1][1])
    assert list(last) == ["features.0/accuracy", "features.4/accuracy"]
    assert last["features.0/accuracy"] > max(0.6, first["features.0/accuracy"])
    assert "Learned from 96 training batches, tested on 23 images." in sink.reports[-1][1].notes
    assert not torch.nn.modules.module._global_forward_hooks


def test_probes_see_what_the_network_saw_in_the_step() -> None:
    """One step, probed by hand: the features before the step's update, in training mode."""
    sink = MemorySink()
    found = monitor(sink, "features.0", pool=10_000)
    model = LittleNet()
    before = model.features[0].weight.detach().clone(), model.features[0].bias.detach().clone()
    fitted(found, model, max_epochs=1, limit_train_batches=1)
    images, labels = (part[:8] for part in stripes(64).tensors)
    features = F.conv2d(images, *before, padding=1).flatten(1)
    assert found.probes is not None
    assert torch.allclose(found.probes._mean[0, 0], features.mean(0), atol=1e-5)
    assert int(labels.max()) + 1 == found.probes.classes


class Checkpointed(LittleNet):
    """Runs its layers once more in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.features[6].p = 0.0

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        images.requires_grad_(self.reentrant)
        maps = checkpoint(self.features, images, use_reentrant=self.reentrant)
        logits: Tensor = self.head(F.relu(maps).mean((2, 3)))
        return logits


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_read_once(reentrant: bool) -> None:
    found, plain = monitor(MemorySink()), monitor(MemorySink())
    options: dict[str, Any] = {"limit_train_batches": 3, "max_epochs": 1}
    pl.seed_everything(1, verbose=False)
    one = Checkpointed(reentrant)
    pl.seed_everything(1, verbose=False)
    other = LittleNet()
    other.features[6].p = 0.0
    fitted(found, one, **options)
    fitted(plain, other, **options)
    assert found.probes is not None
    assert found.probes.batches == 3
    # Recomputed BatchNorms have moved their statistics twice: only what they normalize by is compared.
    assert torch.allclose(weights(found), weights(plain), atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision: Any) -> None:
    sink = MemorySink()
    fitted(monitor(sink), max_epochs=8, precision=precision)
    assert numbers(sink.reports[-1][1])["features.0/accuracy"] > 0.5
    assert torch.get_default_dtype() == torch.float32


def test_each_batch_counts_where_gradients_accumulate() -> None:
    sink = MemorySink()
    found = monitor(sink)
    fitted(found, accumulate_grad_batches=3, max_epochs=1)
    assert found.probes is not None
    assert found.probes.batches == 8


class Manual(LittleNet):
    """Optimizes by hand, and calls the network twice in a step, with other images and then with others in number."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        self(batch[0][:3])
        loss = F.cross_entropy(self(batch[0]), batch[1]) + 0 * self(torch.zeros_like(batch[0])).mean()
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def test_the_first_pass_over_the_batch_counts_also_by_hand() -> None:
    sink = MemorySink()
    fitted(monitor(sink), Manual(), max_epochs=12)
    assert numbers(sink.reports[-1][1])["features.0/accuracy"] > 0.5


def test_a_layer_chosen_by_kind_and_its_norm_chosen_by_name() -> None:
    sink = MemorySink()
    fitted(monitor(sink, "conv", "features.1"), max_epochs=1)
    assert list(numbers(sink.reports[-1][1])) == [f"features.{n}/accuracy" for n in (0, 1, 4)]


def test_probes_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    def keeper() -> pl.Callback:
        return pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    whole, resumed, new = (monitor(MemorySink()) for _ in range(3))
    fitted([whole, keeper()], max_epochs=2, enable_checkpointing=True)
    saved = tmp_path / "epoch=0.ckpt"
    assert any("OnlineProbeMonitor" in name for name in torch.load(saved, weights_only=True)["callbacks"])
    saved = saved.rename(tmp_path.parent / "saved.ckpt")
    (tmp_path / "epoch=1.ckpt").unlink()
    fitted([resumed, keeper()], max_epochs=2, enable_checkpointing=True, ckpt_path=saved)
    assert resumed.probes is not None
    assert resumed.probes.batches == 16
    # Dropout draws anew after the checkpoint; the first layer lies before it, but its weights have been moved by it.
    assert float((weights(resumed) - weights(whole)).abs().max()) < 0.2 < float(weights(whole).abs().max())
    for _ in range(2):  # another fit begins anew
        fitted(new, max_epochs=1)
        assert new.probes is not None
        assert new.probes.batches == 8


def test_probes_that_have_learned_are_tested_elsewhere_too() -> None:
    sink = MemorySink()
    found = monitor(sink)
    with pytest.raises(ValueError, match=r"learn in trainer\.fit, and they have not.* in trainer\.validate"):
        quiet_trainer(callbacks=[found]).validate(LittleNet(), loader(23, 1), verbose=False)
    model = fitted(found, max_epochs=2)
    for stage in ("validate", "test"):
        getattr(quiet_trainer(callbacks=[found]), stage)(model, loader(23, 1), verbose=False)
        step, report = sink.reports[-1]
        assert step.stage == stage
        assert numbers(report) == numbers(sink.reports[1][1])


class Silent(LittleNet):
    """Never calls the network with the batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0][:2]).mean()


class Soft(LittleNet):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def test_what_could_not_work_is_refused_at_the_first_step() -> None:
    unknown = torch.full((16,), torch.nan)
    floats = DataLoader(TensorDataset(torch.rand(16, 1, 14, 14), unknown), batch_size=8)
    for options, match in (
        ({"num_sanity_val_steps": 0}, "classes, labels or values, but the labels are torch.float32"),
        ({}, "a probe needs the class of each image"),
    ):
        trainer = quiet_trainer(callbacks=[OnlineProbeMonitor(sinks=[MemorySink()], on_error="raise")], **options)
        with pytest.raises(ValueError, match=match):
            trainer.fit(Soft(), floats, floats)
        assert trainer.global_step == 0
    with pytest.raises(ValueError, match=r"over 8 images was expected, but layers \['features.0', 'features.4'\]"):
        fitted(OnlineProbeMonitor(sinks=[MemorySink()], on_error="raise"), Silent())
    with pytest.raises(ValueError, match="compiled networks"):
        fitted(OnlineProbeMonitor(sinks=[MemorySink()], on_error="raise"), torch.compile(LittleNet()))  # type: ignore[arg-type]
    compiled = LittleNet()
    compiled.features.compile()
    with pytest.raises(ValueError, match="compiled networks"):
        fitted(OnlineProbeMonitor(sinks=[MemorySink()], on_error="raise"), compiled)
    with pytest.raises(ValueError, match="pool=0"):
        OnlineProbeMonitor(pool=0)
    assert not torch.nn.modules.module._global_forward_hooks


class Breaking(LittleNet):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step == 3:
            raise RuntimeError("the user's own mistake")
        return loss


def test_no_hook_stays_behind_a_failing_step() -> None:
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        fitted(monitor(MemorySink()), Breaking())
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_network_that_breaks_is_named_and_looks_go_on(caplog: pytest.LogCaptureFixture) -> None:
    class Diverging(LittleNet):
        def on_train_epoch_end(self) -> None:
            self.features[4].bias.data.fill_(torch.nan)

    sink = MemorySink()
    fitted(OnlineProbeMonitor(sinks=[sink]), Diverging(), max_epochs=3)
    assert [step.epoch for step, _ in sink.reports] == [1, 2, 3]
    # Gradients have carried it to the first layer.
    note = "Not finite: features of tested images are NaN or infinite at features.0, features.4."
    assert [report.notes[0] == note for _, report in sink.reports] == [False, True, True]
    assert "switched off" not in caplog.text
