"""Text to typed values: what a shell user types arrives as meant, and what cannot be meant is refused in one line."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenhand.config.options import Option
from evenhand.config.parsing import check_value, parse_value, split_list
from evenhand.errors import ConfigError


def option(hint: object, **facts: object) -> Option:
    return Option("some.option", hint, None, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "20", 20),
        (float, "2.5e-4", 2.5e-4),
        (float, "3", 3.0),
        (bool, "False", False),
        (bool, "on", True),
        (str, "a folder/with = sign, and ünïcode", "a folder/with = sign, and ünïcode"),
        (str, "'quoted'", "quoted"),
        (str, "null", "null"),
        (str, "", ""),
        (Optional[str], "null", None),
        (Optional[float], "None", None),
        (Optional[list[str]], "sex,age,sex*age", ["sex", "age", "sex*age"]),
        (Optional[list[str]], "null", None),
        (list[str], "[a, 'b, c', Barrett's]", ["a", "b, c", "Barrett's"]),
        (list[str], "pleural effusion", ["pleural effusion"]),
        (list[str], "[]", []),
        (list[int], "0,1,2", [0, 1, 2]),
        (list[int], "[0]", [0]),
        (list[float], "0.5, 1e-3", [0.5, 1e-3]),
    ],
)
def test_values(hint: object, text: str, value: object) -> None:
    parsed = parse_value(text, option(hint))
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("hint", "text", "says"),
    [
        (int, "1.5", "must be a whole number"),
        (int, "", "must be a whole number"),
        (float, "fast", "must be a number"),
        (bool, "maybe", "must be true or false"),
        (list[int], "0,b", "'b', but must be a whole number"),
        (list[str], "a,,b", "empty entry"),
        (list[str], "[a,b", "bracket"),
        (dict[str, str], "folder", "some.option.NAME=folder"),
    ],
)
def test_refused(hint: object, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("[", r"\[")) as caught:
        parse_value(text, option(hint))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("some.option")


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters=",'\"[]", exclude_categories=("Zs", "Zl", "Zp", "Cc")), min_size=1)
QUOTABLE = st.text(st.characters(codec="utf-8", exclude_characters="'\"", exclude_categories=("Cc",))).filter(lambda text: text.strip())


@given(st.lists(PLAIN))
def test_joined_by_commas_and_split_again(entries: list[str]) -> None:
    assert split_list(",".join(entries)) == entries
    assert split_list(f"[{', '.join(entries)}]") == entries


@given(st.lists(QUOTABLE))
def test_quoted_entries_keep_commas_and_brackets(entries: list[str]) -> None:
    assert split_list(",".join(f'"{entry}"' for entry in entries)) == entries


def test_choices_and_ranges() -> None:
    assert "must be one of: a, b" in check_value("c", option(str, choices=("a", "b")))
    assert check_value("a", option(str, choices=("a", "b"))) == ""
    assert "at least 1" in check_value(0, option(int, low=1))
    assert "at most 1" in check_value(1.5, option(float, low=0, high=1))
    assert "finite" in check_value(float("nan"), option(float))
    assert "at least 1" in check_value([32, 0], option(list[int], low=1))
    assert check_value(None, option(Optional[int], low=1)) == ""
    assert check_value(True, option(bool, low=5)) == ""
