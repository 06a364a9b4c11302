"""After which epochs a look is due."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_cnnviz.callbacks._base.schedule import Schedule


def trainer(epoch: int, *, fn: str = "fit", sanity: bool = False, last: int = 7, every: int = 1) -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(fn=fn),
        sanity_checking=sanity,
        current_epoch=epoch - 1,
        max_epochs=last,
        check_val_every_n_epoch=every,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"every_n_epochs": 3}, [3, 6, 7]),
        ({"epochs": [1, 4, 99]}, [1, 4]),
        ({"epochs": "last"}, []),
        ({"epochs": "log"}, [1, 2, 5, 7]),
        ({"every_n_steps": 3}, []),
    ],
    ids=str,
)
def test_epochs_with_a_look(options: dict[str, Any], expected: list[int]) -> None:
    schedule = Schedule(**options)
    assert [epoch for epoch in range(1, 8) if schedule.due(trainer(epoch))] == expected
    assert schedule.ends == (not isinstance(options.get("epochs"), list))


def test_log_spaced_epochs_and_those_validations_that_stand_for_them() -> None:
    schedule = Schedule(epochs="log")
    due = [epoch for epoch in range(1, 200) if schedule.due(trainer(epoch, last=-1))]
    assert due == [1, 2, 5, 10, 20, 40, 80, 160]
    validated = range(4, 200, 4)
    assert [epoch for epoch in validated if schedule.due(trainer(epoch, last=-1, every=4))] == [
        4,
        8,
        12,
        20,
        40,
        80,
        160,
    ]


def test_steps_are_counted_where_a_batch_takes_none_or_several() -> None:
    schedule = Schedule(every_n_steps=4)
    steps = [0, 0, 2, 4, 4, 5, 9, 20, 23]
    assert [now for before, now in pairwise(steps) if schedule.due_between(before, now)] == [4, 9, 20]
    assert not Schedule().due_between(0, 100)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0: give 1 or more"),
        ({"every_n_steps": 3, "every_n_epochs": 1}, "every_n_steps=3 and every_n_epochs=1: give one"),
        ({"every_n_steps": 3, "epochs": "log"}, "every_n_steps=3 and epochs='log': give one"),
        ({"epochs": "often"}, r"epochs='often': .*\"log\" for 1, 2, 5, 10, 20, 40"),
    ],
)
def test_what_is_no_schedule_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Schedule(**options)


def test_everything_is_tried_before_training_and_looked_at_outside_of_fit() -> None:
    for options in ({"epochs": [5]}, {"epochs": "last"}, {"every_n_epochs": 9}, {"every_n_steps": 9}):
        schedule = Schedule(**options)  # type: ignore[arg-type]
        assert schedule.due(trainer(1, sanity=True))
        assert schedule.due(trainer(1, fn="validate"))


def test_epochs_without_a_validation_are_named() -> None:
    never = Schedule(epochs=[1, 3]).never_validated(trainer(1, every=2))
    assert never is not None
    assert "validation runs every 2 epochs" in never
    assert Schedule(epochs=[1, 4]).never_validated(trainer(1, every=2)) is None
    assert Schedule().never_validated(trainer(1, every=2)) is None
