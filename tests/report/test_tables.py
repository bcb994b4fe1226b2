"""Tables: not estimable is never a number, missing groups stand apart, heat maps shade what they show."""

from __future__ import annotations

from evenhand.report import audit_page, compare_page, summary, tables, words

HOLE = {"value": None, "lower": None, "upper": None, "reason": "3 patients in the denominator, at least 10 are needed", "n": 5}


def test_not_estimable_says_reason_and_never_zero() -> None:
    cell = tables.estimate_cell(HOLE)
    assert (cell.text, cell.small, cell.state) == ("not estimable", "3 patients, needs 10", "none")


def test_a_row_with_one_reason_says_it_once_and_missing_is_last() -> None:
    good = {"value": 0.8, "lower": 0.7, "upper": 0.9, "n": 90}
    groups = {"(missing)": {"n": 5, "auc": HOLE, "tpr": HOLE, "missing": True}, "f": {"n": 90, "auc": good, "tpr": good}}
    table = tables.group_table("sex", {"n_missing": 5, "groups": groups, "gaps": {}}, {"n": 95, "auc": good, "tpr": good}, ("auc", "tpr"))
    assert [row.kind for row in table.rows] == ["overall", "group", "missing"]
    assert table.rows[-1].merged == f"not estimable: {HOLE['reason']}"
    assert tables.not_estimable({"y": {"attributes": {"sex": {"groups": groups}}}}) == []


def test_heat_shade_grows_as_auc_falls() -> None:
    shades = [tables.heat_cell({"value": v, "lower": v, "upper": v}).shade for v in (0.99, 0.85, 0.77, 0.7, 0.6, 0.5)]
    assert shades == [0, 1, 2, 3, 4, 5]
    assert tables.heat_cell(HOLE).text == "n/e"


def test_threshold_on_test_rows_is_said() -> None:
    assert "test rows" in summary.threshold_text({"value": 0.5, "rule": "youden", "source": "test", "n": 9})


def test_every_published_measure_is_defined() -> None:
    for name in ("auc", "tpr", "fpr", "equalized_odds", "equal_opportunity", "demographic_parity", "disparate_impact", "net_benefit"):
        assert words.measure(name).plain
        assert words.measure(name).formal


def test_verdicts_fold_when_there_are_many_and_none_is_no_acquittal() -> None:
    many = [{"code": "insufficient_evidence", "text": str(i)} for i in range(40)] + [{"code": "collapsed", "text": "c"}]
    view = audit_page.verdict_boxes(many, "none")
    assert view["shown"][0]["text"] == "c"
    assert len(view["shown"]) + sum(len(group["boxes"]) for group in view["folded"]) == 41
    assert "not a finding" in audit_page.NO_VERDICT


def test_direction_knows_which_side_is_better() -> None:
    up = {"value": 0.1, "lower": 0.05, "upper": 0.15}
    assert [compare_page.direction(m, up) for m in ("auc", "fnr", "positive_rate")] == ["gained", "lost", ""]
