"""After which epochs a look is due."""

from __future__ import annotations

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
    ],
    ids=str,
)
def test_epochs_with_a_look(options: dict[str, Any], expected: list[int]) -> None:
    schedule = Schedule(**options)
    assert [epoch for epoch in range(1, 8) if schedule.due(trainer(epoch))] == expected
    assert schedule.at_end == (options.get("epochs") == "last")


def test_everything_is_tried_before_training_and_looked_at_outside_of_fit() -> None:
    for options in ({"epochs": [5]}, {"epochs": "last"}, {"every_n_epochs": 9}):
        schedule = Schedule(**options)  # type: ignore[arg-type]
        assert schedule.due(trainer(1, sanity=True))
        assert schedule.due(trainer(1, fn="validate"))


def test_epochs_without_a_validation_are_named() -> None:
    never = Schedule(epochs=[1, 3]).never_validated(trainer(1, every=2))
    assert never is not None
    assert "validation runs every 2 epochs" in never
    assert Schedule(epochs=[1, 4]).never_validated(trainer(1, every=2)) is None
    assert Schedule().never_validated(trainer(1, every=2)) is None
