import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_cnnviz.render._text import length, one_line
from lightning_cnnviz.render.paper.leaf import Leaf, broken, widest_part


@given(st.text(max_size=60), st.integers(20, 400))
def test_breaking_loses_no_letter_and_every_line_fits(text: str, width: int) -> None:
    lines = broken(text, width, 12)
    assert "".join("".join(lines).split()) == "".join(one_line(text).split())
    assert all(length(line, 12) <= width or len(line) == 1 for line in lines)


@given(st.text("ab. /_", max_size=40))
def test_a_line_of_the_widest_part_breaks_no_part(text: str) -> None:
    lines = broken(text, max(widest_part(text, 12), 1), 12)
    parts = [part for line in lines for part in line.replace("/", "/ ").replace("_", "_ ").replace(".", ". ").split()]
    whole = one_line(text).replace("/", "/ ").replace("_", "_ ").replace(".", ". ").split()
    assert "".join(parts) == "".join(whole)
    assert all(any(part.strip("./_") in word for word in whole) for part in parts)


def test_words_stay_together_where_they_can() -> None:
    width = length("features.12.", 12)
    assert broken("one features.12.expand3x3", width, 12) == ["one", "features.12.", "expand3x3"]
    assert broken("", width, 12) == []


def test_a_figure_is_as_large_as_its_leaf_and_every_text_stands_in_it() -> None:
    leaf = Leaf(600, 200)
    leaf.head("Title", "a caption " * 30, {"dead": 3})
    leaf.foot(["a note"])
    figure = leaf.figure()
    assert figure.get_size_inches().tolist() == pytest.approx([3, leaf.top / 200])
    texts = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert {"Title", "dead 3", "a note"} <= set(texts)
    assert 0 < min(texts.values()) < max(texts.values()) < leaf.top
