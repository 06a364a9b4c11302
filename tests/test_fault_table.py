"""The page of faults in the docs lists what tests inject."""

from __future__ import annotations

from fault_table import PAGE, page, rows_of

SOURCE = """
@pytest.mark.fault("disk", "the disk is full", "looks wait")
@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.fault("memory", "too little", "halved"))])
def test_it(x): ...
CASES = [pytest.param(2, marks=pytest.mark.fault("names", "long", "cut"))]
"""


def test_faults_are_found_at_tests_and_at_their_parameters() -> None:
    assert rows_of(SOURCE, "a/test_b.py") == [
        ("disk", "the disk is full", "looks wait", "a/test_b.py::test_it"),
        ("memory", "too little", "halved", "a/test_b.py::test_it"),
        ("names", "long", "cut", "a/test_b.py"),
    ]


def test_the_page_lists_them() -> None:
    shown = PAGE.read_text(encoding="utf-8")
    # Line by line: a test that was added, or said otherwise, stands here by itself.
    assert [line for line in page().splitlines() if line not in shown.splitlines()] == []
    assert shown == page(), "write it anew: python tests/fault_table.py"
