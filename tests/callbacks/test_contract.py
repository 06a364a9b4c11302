"""What every exported monitor must keep: it shows something, and training does not notice."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from torch import nn

import lightning_cnnviz
from lightning_cnnviz import MemorySink, Monitor

MONITORS: list[type[Monitor]] = [
    exported
    for name in lightning_cnnviz.__all__
    if inspect.isclass(exported := getattr(lightning_cnnviz, name))
    and issubclass(exported, Monitor)
    and not inspect.isabstract(exported)
]
Make = Callable[..., Monitor]


@pytest.fixture(params=MONITORS, ids=lambda kind: kind.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param  # type: ignore[no-any-return]


def takes(make: Make, option: str) -> bool:
    """Whether a monitor has an option; the table of layers, made once, has no schedule, and filters need no data."""
    names: set[str] = set()
    for kind in inspect.getmro(make):  # type: ignore[arg-type]
        parameters = inspect.signature(kind.__init__).parameters.values()
        names.update(parameter.name for parameter in parameters)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return option in names


def test_there_are_monitors_to_test() -> None:
    assert MONITORS
    assert all(not inspect.isabstract(kind) for kind in MONITORS)


def fitted(callbacks: list[Any], *, workers: int = 0, **options: Any) -> tuple[LittleNet, Any]:
    pl.seed_everything(3, verbose=False)
    model = LittleNet()
    trainer = quiet_trainer(callbacks=callbacks, **options)
    loaders = {"num_workers": workers, "persistent_workers": workers > 0}
    trainer.fit(model, train_loader(**loaders), val_loader(**loaders))
    return model, trainer


def everything(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    # What chance would give next: a look that draws from a generator shows here.
    state["torch"] = torch.rand(3)
    state["numpy"] = torch.tensor(np.random.rand(3))
    state["python"] = torch.tensor([random.random()])
    return state


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"val_check_interval": 2},
        {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2},
        {"precision": "bf16-mixed"},
        {"workers": 2},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_weights_and_chance_are_bit_identical(make: Make, options: dict[str, Any]) -> None:
    plain, _ = fitted([], **options)
    expected = everything(plain)
    sink = MemorySink()
    watched, _ = fitted([make(sinks=[sink], on_error="raise")], **options)
    assert_equal(everything(watched), expected)
    assert sink.reports


@pytest.mark.parametrize("when", [{"epochs": "last"}, {"epochs": [2]}], ids=["last", "second"])
@pytest.mark.parametrize("own_data", [False, True], ids=["validation", "own data"])
def test_own_passes_disturb_nothing(make: Make, when: dict[str, Any], own_data: bool) -> None:
    if not takes(make, "epochs") or (own_data and not takes(make, "data")):
        pytest.skip("it has no such option")
    plain, _ = fitted([])
    expected = everything(plain)
    sink = MemorySink()
    data = {"data": val_loader(shuffle=True)} if own_data else {}
    watched, _ = fitted([make(sinks=[sink], on_error="raise", **when, **data)])
    assert_equal(everything(watched), expected)
    assert {step.epoch for step, _ in sink.reports} == {2}


class Spy(pl.Callback):
    """Looks at the network after every hook that a monitor uses."""

    def __init__(self) -> None:
        self.flags: list[list[bool]] = []
        self.hooks: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.flags.append([module.training for module in pl_module.modules()])
        self.hooks.append(hooks_of(pl_module))
        assert all(parameter.requires_grad for parameter in pl_module.parameters())

    on_train_end = on_train_batch_start


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_no_hook_is_left_between_validations_and_modes_are_kept(make: Make) -> None:
    plain, watched = Spy(), Spy()
    fitted([plain])
    fitted([make(sinks=[MemorySink()], on_error="raise"), watched])
    assert watched.hooks == [0] * len(plain.hooks)
    assert watched.flags == plain.flags


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_the_users_own_failure(make: Make, kind: type[BaseException]) -> None:
    class Breaks(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if not trainer.sanity_checking:
                raise kind("stop")

    model = LittleNet()
    trainer = quiet_trainer(callbacks=[make(sinks=[MemorySink()]), Breaks()])
    with pytest.raises((kind, SystemExit)):
        trainer.fit(model, train_loader(), val_loader())
    assert hooks_of(model) == 0


def test_silent_in_the_sanity_check(make: Make) -> None:
    sink = MemorySink()

    class Listener(pl.Callback):
        def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
            assert sink.reports == []
            assert hooks_of(pl_module) == 0

    fitted([make(sinks=[sink], on_error="raise"), Listener()])
    assert sink.reports


def test_a_failing_sink_is_given_up_once_and_the_run_goes_on(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemorySink):
        def write(self, report: Any, step: Any) -> None:
            super().write(report, step)
            raise OSError("No space left on device")

    full, good = Full(), MemorySink()
    often = {"every_n_epochs": 1} if takes(make, "every_n_epochs") else {}
    fitted([make(sinks=[full, good], **often)])
    assert len(full.reports) == 1
    assert len(good.reports) > (1 if takes(make, "epochs") else 0)
    assert len([record for record in caplog.records if "given up" in record.message]) == 1
    with pytest.raises(OSError, match="No space left"):
        fitted([make(sinks=[Full()], on_error="raise")])


def test_nowhere_to_show_names_the_choices(make: Make) -> None:
    with pytest.raises(ValueError, match=r"sinks=\[\].*leave sinks out.*PageSink\(\)"):
        fitted([make(sinks=[])])


def test_fast_dev_run_writes_nothing(make: Make, tmp_path: Any) -> None:
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer(callbacks=[make(on_error="raise")], fast_dev_run=True, default_root_dir=tmp_path)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs=0"),
        ({"epochs": []}, r"epochs=\[\]"),
        ({"epochs": [0, 1]}, "counted from 1"),
        ({"on_error": "ignore"}, '"report" or "raise"'),
    ],
)
def test_wrong_options_are_refused_at_once(make: Make, options: dict[str, Any], match: str) -> None:
    if not takes(make, next(iter(options))):
        pytest.skip("it has no such option")
    with pytest.raises(ValueError, match=match):
        make(**options)
