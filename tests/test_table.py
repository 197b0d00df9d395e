"""Text tables stay tables whatever their cells hold."""

from __future__ import annotations

from frontier.table import table


def test_what_would_break_a_line_is_escaped() -> None:
    assert table([("class", "samples"), ("a\nb", "1"), ("größe", "20"), ("\udcff", "3")]).splitlines() == [
        "class   samples",
        "a\\nb          1",
        "größe        20",
        "\\udcff        3",
    ]
