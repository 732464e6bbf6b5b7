"""Tables of text for the terminal."""

from m3.text_table import align_columns


def test_columns_stand_under_each_other() -> None:
    assert align_columns([("a", "bb", "1"), ("long", "b", "10")], left_columns=2) == [
        "a     bb   1",
        "long  b   10",
    ]
    assert align_columns([("a", "bb"), ("long", "")], left_columns=2) == ["a     bb", "long"]
