"""What may be shown of somebody's SQL statement, and how long a pause lasts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.ops import STATEMENT_LENGTH, pause_is_over, pause_note, statement_shape

NOW = datetime(2026, 1, 31, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    ("note", "over"),
    [
        (pause_note("drill", NOW), True),
        (pause_note("drill", NOW + timedelta(microseconds=1)), False),
        ("until then, until 2026-01-31T03:59:00Z", True),
        ("moved, until 2026-01-31T05:59:00+02:00", True),
        ("no zone, until 2026-01-31T03:59:00", False),
        ("maintenance, until the disk is there", False),
        ("until 2026-01-31T03:59:00Z", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_pause_that_says_until_when_ends_by_itself(note: str | None, over: bool) -> None:
    assert pause_is_over(note, NOW) is over


@pytest.mark.parametrize(
    ("statement", "shape"),
    [
        ("UPDATE orders SET status = $1 WHERE order_id = $2", "UPDATE orders SET status = $1 WHERE order_id = $2"),
        ("SELECT 'it''s', 42, -1.5e3, 0x1f FROM t2", "SELECT …, …, -…, … FROM t2"),
        (r"SELECT E'it\'s secret', e'b'", "SELECT …, …"),
        (r"SELECT 'C:\', 'secret'", "SELECT …, …"),
        ("SELECT $$a 'secret'$$, $tag$ $$ secret $tag$", "SELECT …, …"),
        ('SELECT "it\'s" FROM "a""b" WHERE x = \'secret\'', 'SELECT "it\'s" FROM "a""b" WHERE x = …'),
        ("SELECT 1 -- it's secret\nFROM t /* don't */ WHERE x = 'secret'", "SELECT … FROM t WHERE x = …"),
        ("UPDATE t SET email = 'somebody@exam", "UPDATE t SET email = …"),
        ("SELECT N'secret', U&'secret', B'1'", "SELECT N…, U&…, B…"),
        ("<insufficient privilege>", "<insufficient privilege>"),
        ("", ""),
    ],
)
def test_a_statement_is_shown_without_its_values(statement: str, shape: str) -> None:
    assert statement_shape(statement) == shape


@given(st.text(alphabet="ab'\"\\$-/* \n", max_size=30), st.sampled_from(["'{}'", "E'{}'", '"{}"', "/*{}*/"]))
def test_no_quoting_makes_a_later_value_visible(text: str, quoting: str) -> None:
    doubled = text.replace("'", "''").replace('"', '""').replace("*/", "").replace("/*", "")
    if quoting.startswith("E"):
        doubled = doubled.replace("\\", "\\\\")
    statement = f"SELECT {quoting.format(doubled)}, 'secret'"
    assert "secret" not in statement_shape(statement)


def test_a_long_statement_is_cut() -> None:
    assert len(statement_shape("SELECT " + "a, " * 1000)) == STATEMENT_LENGTH
