from lightning_cnnviz.render._text import length
from lightning_cnnviz.render.paper.leaf import Leaf
from lightning_cnnviz.render.paper.tables import table_leaves
from lightning_cnnviz.report import Number, Table


def texts(leaf: Leaf) -> list[str]:
    return [text for _, _, text, _ in leaf._texts]


def test_a_wide_table_breaks_cells_between_words_and_not_numbers() -> None:
    rows: tuple[tuple[Number, ...], ...] = tuple(
        (f"features.{row}.expand3x3", 123456789, "a long sentence that has to be broken into lines " * 2, 0.5)
        for row in range(10, 13)
    )
    (leaf,) = table_leaves(
        Table("t", ("layer", "multiply-adds", "what happens", "share"), rows), Leaf(900, 300), title=""
    )
    said = texts(leaf)
    assert said.count("123,456,789") == 3
    words = " ".join(said)
    assert words.count("sentence") == 6
    for x, _, text, style in leaf._texts:
        size = leaf.dots(style["fontsize"])
        width = length(text, size, style["fontweight"] == "bold")
        left = x - width if style["horizontalalignment"] == "right" else x
        assert left >= -1
        assert left + width <= leaf.width + 1


def test_a_long_table_goes_on_under_its_columns() -> None:
    rows = tuple((row, f"name {row}") for row in range(200))
    leaves = table_leaves(Table("t", ("number", "name"), rows), Leaf(900, 300), title="t", most_height=1200)
    assert len(leaves) > 2
    assert all(leaf.top <= 1200 and "number" in texts(leaf) for leaf in leaves)
    names = [text for leaf in leaves for text in texts(leaf) if text.startswith("name ")]
    assert names == [f"name {row}" for row in range(200)]
