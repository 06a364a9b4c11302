"""What every exported monitor must keep: it shows something, and training does not notice."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from torch import nn
from typing_extensions import Unpack

import lightning_cnnviz
from lightning_cnnviz import CorrelationMonitor, MemorySink, Monitor
from lightning_cnnviz.report import Report

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
    kind: type[Monitor] = request.param
    # One image takes as many turns as five, and a fifth of the time to draw.
    images = inspect.signature(kind).parameters.get("images")
    return functools.partial(kind, images=1) if images is not None and isinstance(images.default, int) else kind


def takes(make: Make, option: str) -> bool:
    """Whether a monitor has an option; the table of layers, made once, has no schedule, and filters need no data."""
    make = make.func if isinstance(make, functools.partial) else make
    own = inspect.signature(make).parameters
    # What `**options: Unpack[...]` stands for.
    more = [get_args(hint)[0] for hint in get_type_hints(make.__init__).values() if get_origin(hint) is Unpack]  # type: ignore[misc]
    return option in own or any(option in get_type_hints(each) for each in more)


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


@pytest.mark.parametrize(
    "when", [{"epochs": "last"}, {"epochs": [2]}, {"every_n_steps": 4}], ids=["last", "second", "by steps"]
)
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
    # Five steps an epoch. The last look of those by steps is at the network that training ended with.
    expected_steps = [(0, 4), (1, 8), (2, 10)] if "every_n_steps" in when else [(2, 10)]
    assert sorted({(step.epoch, step.global_step) for step, _ in sink.reports}) == expected_steps


def test_ctrl_c_ends_with_a_look_that_changes_nothing(make: Make) -> None:
    class Stops(pl.Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 7:
                raise KeyboardInterrupt

    def interrupted(*monitors: Any) -> tuple[LittleNet, dict[str, torch.Tensor]]:
        pl.seed_everything(3, verbose=False)
        model = LittleNet()
        with pytest.raises(SystemExit):
            quiet_trainer(callbacks=[*monitors, Stops()]).fit(model, train_loader(), val_loader())
        return model, everything(model)

    sink = MemorySink()
    model, watched = interrupted(make(sinks=[sink]))
    assert_equal(watched, interrupted()[1])
    assert hooks_of(model) == 0
    if takes(make, "epochs"):
        assert sink.reports[-1][0].global_step == 7


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


@pytest.mark.parametrize("error", [RuntimeError("no such key"), OSError("No space left on device")])
def test_a_failing_sink_is_said_once_and_the_run_goes_on(
    make: Make, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(MemorySink):
        def write(self, report: Any, step: Any) -> None:
            super().write(report, step)
            raise error

    failing, good = Failing(), MemorySink()
    often = {"every_n_epochs": 1} if takes(make, "every_n_epochs") else {}
    fitted([make(sinks=[failing, good], **often)])
    assert len(good.reports) > (1 if takes(make, "epochs") else 0)
    assert len([record for record in caplog.records if "Failing cannot be written to" in record.message]) == 1
    assert len([record for record in caplog.records if "lost to Failing" in record.message]) == 1
    with pytest.raises(type(error), match=str(error)):
        fitted([make(sinks=[Failing()], on_error="raise")])


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


# Of what is compared with an earlier look, there is more after more looks.
COMPARISONS = ("stability", "evolution")


def assert_same_look(report: Report, twin: Report) -> None:
    """Both say the same, comparisons with earlier looks aside."""

    def said(one: Report) -> dict[str, Any]:
        items = [item for item in one.items if not item.name.endswith(COMPARISONS)]
        return {f"{type(item).__name__} {item.name}": plain(item) for item in items}

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return (str(value.dtype), tuple(value.shape), hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest())
        if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items() if key not in COMPARISONS}
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return re.sub(r" · stability [\d.]+", "", value) if isinstance(value, str) else repr(value)

    ours, theirs = said(report), said(twin)
    assert ours
    assert list(ours) == list(theirs)
    # By name: the difference of two whole reports, which pytest would draw, takes it minutes.
    assert not [name for name, item in ours.items() if item != theirs[name]]
    assert report.notes == twin.notes


def last_looks(make: Make) -> tuple[Report, Report]:
    """The look of epoch 2 by a monitor that looked at epoch 1, and by one that did not."""
    often: dict[str, Any] = {"every_n_epochs": 1}
    seldom: dict[str, Any] = {"epochs": [2]}
    found = []
    for when in (often, seldom):
        sink = MemorySink()
        # One range of values for both: else each is shown in the range of the first look.
        options = {"normalization": ([0.0], [1.0])} if takes(make, "normalization") else {}
        fitted([make(sinks=[sink], on_error="raise", **when, **options)])
        reports = [report for step, report in sink.reports if step.epoch == 2]
        found.append(reports[0])
    return found[0], found[1]


def test_a_look_does_not_depend_on_earlier_ones(make: Make) -> None:
    if not takes(make, "epochs"):
        pytest.skip("it looks once")
    assert_same_look(*last_looks(make))


def test_a_monitor_that_forgets_to_forget_is_caught() -> None:
    class Keeps(CorrelationMonitor):
        kept: Any = None

        def running(self, network: nn.Module, look: Any = None) -> Any:
            # The sums of the first look after the sanity check go on through all of them.
            if look is None or self.kept is None or not look.trainer.global_step:
                self.kept = super().running(network, look)
            return self.kept

    with pytest.raises(AssertionError):
        assert_same_look(*last_looks(Keeps))


def test_two_with_names_keep_apart(make: Make) -> None:
    sink = MemorySink()
    fitted([make(name="first", sinks=[sink], on_error="raise"), make(name="second", sinks=[sink], on_error="raise")])
    shown = [(step, type(item), report.key(item)) for step, report in sink.reports for item in report.items]
    assert {report.name for _, report in sink.reports} == {"first", "second"}
    assert len(set(shown)) == len(shown)
    # A checkpoint would hold both under one key: Lightning refuses them.
    with pytest.raises(RuntimeError, match=r"more than one stateful callback"):
        fitted([make(name="same", sinks=[sink]), make(name="same", sinks=[sink])])
