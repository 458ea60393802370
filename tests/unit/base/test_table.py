"""Tables and drawings as text, and what a notebook shows of them."""

from alexnet_nb.base.table import MarkdownTable, Svg, format_value


def test_a_table_is_markdown_in_a_terminal_and_in_a_notebook():
    table = MarkdownTable(
        ["layer", "units"], [("fc6", 4096), ("sum", 0.123456)], "Two."
    )
    expected = (
        "| layer | units |\n| --- | --- |\n| fc6 | 4,096 |\n| sum | 0.1235 |\n\nTwo."
    )
    assert str(table) == repr(table) == table._repr_markdown_() == expected


def test_a_table_without_a_note_ends_with_its_last_row():
    assert MarkdownTable(["a"], [(True,)]).endswith("| True |")  # no number


def test_values_are_short():
    assert format_value(1e-4) == "0.0001"
    assert format_value(("fc8",)) == "(fc8)"
    assert format_value((0.01,) * 8) == "0.01 (all 8)"
    assert format_value((0.0, 1.0)) == "(0, 1)"
    schedule = tuple((i / 90, "all", 0.5**i) for i in range(1, 90))
    first, last = "(0.01111, all, 0.5)", "(0.9889, all, 1.616e-27)"
    assert format_value(schedule) == f"89 steps from {first} to {last}"


def test_a_drawing_is_named_in_a_terminal_and_drawn_in_a_notebook():
    drawing = Svg("<svg></svg>")
    assert repr(drawing) == "Svg(11 characters)"
    assert drawing._repr_svg_() == "<svg></svg>"
