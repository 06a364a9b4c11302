"""Whole networks, view by view, against independent computations; a few in the default run, the others by `-m slow`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import network_table
import pytest
import torch
import torchvision
from matrix.checks import CHECKS, Subject, outcome
from matrix.networks import NETWORKS, NOT_ASKED, Network

QUICK = [network for network in NETWORKS if network.quick]


@pytest.mark.parametrize(
    "network",
    [pytest.param(each, id=each.name, marks=() if each.quick else pytest.mark.slow) for each in NETWORKS],
)
@pytest.mark.filterwarnings("ignore")
def test_every_view_is_exact_or_refuses_with_its_reason(network: Network) -> None:
    subject, wrong = Subject(network), []
    for view in CHECKS:
        try:
            refusal, _ = outcome(view, subject)
        except AssertionError as error:
            wrong.append(f"{view}: {error}")
            continue
        if not agrees(network, view, refusal):
            wrong.append(f"{view}: {refusal or 'exact'}, not {network.refusals.get(view, 'exact')}")
    assert not wrong


def agrees(network: Network, view: str, refusal: str) -> bool:
    """Whether a refusal is the one that is expected, or there is none where none is."""
    pattern = network.refusals.get(view)
    return not refusal if pattern is None else bool(refusal) and re.search(pattern, refusal) is not None


def test_every_builder_of_torchvision_has_a_row_or_is_named_beside_one() -> None:
    names = {name for network in NETWORKS for name in (network.name, *network.siblings)}
    asked = {name for name in torchvision.models.list_models() if not name.startswith(NOT_ASKED)}
    assert asked - names == set()
    assert len({network.name for network in NETWORKS if network.library == "timm"}) >= 25


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_siblings_are_made_of_kinds_of_modules_that_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **how: made(*size, **{**how, "device": "meta"}))
    kinds: dict[str, set[type]] = {}
    networks = [network for network in NETWORKS if network.siblings]
    for network in networks:
        kinds.setdefault(network.kind, set()).update(type(module) for module in network.build().modules())
    for network in networks:
        for name in network.siblings:
            assert {type(module) for module in network.build(name).modules()} <= kinds[network.kind], name


def test_the_page_is_what_was_found_and_what_is_expected() -> None:
    assert Path(network_table.PAGE).read_text("utf-8") == network_table.page(), (
        "run: python tests/network_table.py --page"
    )
    entries = json.loads(network_table.OUTCOMES.read_text("utf-8"))
    by_name = {network.name: network for network in NETWORKS}
    for name, views in entries.items():
        assert [*views] == [*CHECKS]
        for view, entry in views.items():
            assert agrees(by_name[name], view, entry["refusal"]), (name, view, entry["refusal"])
