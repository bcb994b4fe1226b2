"""Values that may mean "missing", and splits that nobody took for one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from evenhand.evaluation.doubts import WORDS, doubtful, unused_splits


@pytest.mark.parametrize("word", sorted(WORDS))
def test_words(word: str) -> None:
    frame = pd.DataFrame({"sex": ["f", "m", f" {word.upper()} ", word]})
    said = doubtful(frame, ["sex", "sex*age"], {}, (), None)
    assert len(said) == 1
    assert "is a group like any other" in said[0]


def test_codes_of_groups_and_numbers_of_measurements() -> None:
    frame = pd.DataFrame({"race": [1, 2, 9, -1, 99.0], "age": [30, 99, -1, 999, 9]})
    found = doubtful(frame, ["race"], {}, (), None)[0]
    assert ("'-1' (1 row)" in found, "'99' (1 row)" in found, "'9' " in found) == (True, True, False)
    found = doubtful(frame, ["age"], {}, {"age"}, None)[0]
    assert "'-1' (1 row)" in found
    assert "'999' (1 row)" in found
    assert "'99' " not in found
    assert doubtful(frame, ["age"], {"age": (0, 60, 1000)}, (), None) == []


def test_stored_groups_and_patients() -> None:
    frame = pd.DataFrame({"age": ["unknown", "30"], "age__group": ["[0,60)", "[0,60)"], "pid": ["unknown", "7"]})
    assert doubtful(frame, ["age"], {}, (), None) == []
    assert "may stand for an unknown patient" in doubtful(frame, [], {}, (), "pid")[0]
    assert doubtful(frame.assign(pid=[98, 99], site=[98, 99]), ["site"], {}, (), "pid") == []
    assert doubtful(frame.assign(pid=[1, 99]), [], {}, (), "pid") == []


def test_splits_under_other_names() -> None:
    frame = pd.DataFrame({"part_of": np.tile(["Train", "test"], 3), "view": "AP", "n": 1})
    assert [line[:16] for line in unused_splits(frame, ["part_of", "view", "n"])] == ["column 'part_of'"]
