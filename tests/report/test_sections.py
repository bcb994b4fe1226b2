"""Sections of the audit page: shown where the audit has the data, without a trace where it has not, numbers as in audit.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.evaluation.evaluate import evaluate
from evenhand.evaluation.values import evaluate_values
from evenhand.metrics.cells import METRICS
from evenhand.metrics.gaps import COMBINED
from evenhand.metrics.means import VALUE_METRICS
from evenhand.report import curve_pictures, drivers, evidence, explained, harms, intersections, summary, tables, words
from evenhand.report.audit_page import audit_page
from evenhand.report.groups_sections import performance_parts, sizes_section
from evenhand.report.html import TEMPLATES, write_audit_report
from evenhand.report.page import Part, Section
from tests.report import pages

TITLES = {
    "Where groups cross": "intersections",
    "How much of a gap goes with case mix": "explained",
    "How many patients would be needed": "power",
    "Under-diagnosis": "underdiagnosis",
    "Does a score mean the same": "calibration",
    "Bounds of each gap": "bounds",
}


def rich() -> dict[str, Any]:
    """An audit with everything that makers may add."""
    audit = pages.audit(keys={"sex": ["f", "m"], "site": ["a", "b"], "sex*site": ["f*a", "f*b", "m*a", "m*b"]})
    (block,) = audit["labels"].values()
    for attribute in block["attributes"].values():
        for group in (block["overall"], *attribute["groups"].values()):
            group.update(fnr=pages.estimate(0.28), calibration_slope=pages.estimate(0.9), calibration_intercept=pages.estimate(-0.1))
        gap = {**pages.estimate(0.19), "p": 0.01, "p_holm": None, "groups": ["f", "m"], "excluded": [], "measure": "fnr"}
        attribute["gaps"]["underdiagnosis"] = gap
        attribute["gaps"]["auc"]["bounds"] = {
            "lower": 0.0311,
            "upper": 0.2722,
            "lower_exact": False,
            "upper_exact": True,
            "interval": [0.0, 0.3333],
            "groups": ["f", "m"],
            "n_missing": 7,
            "n_missing_patients": 5,
        }
        attribute["power"] = {
            "auc": {
                "n_patients": 50,
                "detectable": 0.1444,
                "pair": ["f", "m"],
                "needed": {"0.05": 4321, "0.1": 1080, "0.2": 270},
                "power": 0.8,
                "alpha": 0.05,
                "n_tests": 2,
            },
        }
        entry = {
            "groups_apart": ["f", "m"],
            "gap": pages.estimate(0.1212),
            "standardised": pages.estimate(0.0404),
            "difference": pages.estimate(0.0808),
            "explained_share": {"value": 0.6667, "lower": 0.2, "upper": 1.2, "n": 90},
            "coverage": 0.93,
            "groups": {"f": pages.estimate(0.8181)},
            "excluded": [],
        }
        hole = {"gap": pages.hole(), "excluded": []}
        attribute["explained"] = {"columns": ["age", "view"], "metrics": {"auc": entry, "tpr": hole}, "prevalence_matched": {"ppv": entry}}
    block["intersections"] = [
        {
            "attribute": "sex*site",
            "group": "f*b",
            "metric": "auc",
            "value": 0.71,
            "rest": 0.83,
            "effect": -0.1234,
            "lower": -0.2,
            "upper": -0.04,
            "p": 0.001,
            "p_adjusted": 0.012,
            "n": 21,
            "n_patients": 10,
            "rank": 1,
        },
        {
            "attribute": "sex",
            "group": "m",
            "metric": "tpr",
            "value": None,
            "rest": None,
            "effect": None,
            "lower": None,
            "upper": None,
            "p": None,
            "p_adjusted": None,
            "n": 3,
            "n_patients": 3,
            "reason": "3 patients in the denominator, at least 10 are needed",
        },
    ]
    return audit


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def parts_of(section: Section) -> list[Part]:
    found = []

    def collect(part: Part) -> None:
        found.append(part)
        for inner in part.parts:
            collect(inner)

    for part in section.parts:
        collect(part)
    return found


def test_everything_that_is_there_is_shown(tmp_path: Path) -> None:
    text = text_of(write_audit_report(rich(), None, tmp_path / "r.html"))
    places = [
        text.index(f">{title}")
        for title in (
            "Where groups cross",
            "Attributes that are not recorded",
            "How much of a gap goes with case mix",
            "How many patients would be needed",
            "Under-diagnosis",
            "Does a score mean the same",
        )
    ]
    assert places == sorted(places)
    for number in ("−0.123", "≥ 0.031", "0.272", "0.000 to 0.333", "0.14", "4\u202f321", "0.121", "0.040", "67%", "20% to 120%", "0.818"):
        assert number in text, number
    assert "Groups share cells that hold 93% of the cases" in text


@pytest.mark.parametrize("title", TITLES)
def test_what_is_absent_leaves_no_trace(tmp_path: Path, title: str) -> None:
    bare = pages.audit()
    for block in bare["labels"].values():
        for attribute in block["attributes"].values():
            for gap in attribute["gaps"].values():
                gap.pop("bounds", None)
    text = text_of(write_audit_report(bare, None, tmp_path / "r.html"))
    assert title not in text
    assert "Scores and curves" not in text


def test_numbers_on_the_page_are_those_of_the_audit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    frame = pd.DataFrame({"y_true": y, "y_score": 0.4 * y + 0.6 * rng.random(300), "sex": rng.choice(["f", "m"], 300)})
    audit = evaluate(frame, labels=["y"], attributes=["sex"], config=AuditConfig(bootstrap=50, permutations=50)).to_json()
    text = text_of(write_audit_report(audit, frame, tmp_path / "r.html"))
    rows = re.findall(r"<tr.*?</tr>", text, flags=re.S)
    block = audit["labels"]["y"]
    for metric in METRICS:
        assert words.number(block["overall"][metric]["value"]) in text
        title = words.measure(metric).title
        (row,) = [r for r in rows if f">{title}</th>" in r and "soft" in r]
        assert words.number(block["overall"][metric]["lower"]) in row
    for key, group in block["attributes"]["sex"]["groups"].items():
        (row,) = [
            r for r in rows if f">{key}</th>" in r and words.number(group["tpr"]["value"]) in r and words.number(group["auc"]["value"]) in r
        ]
        assert f">{group['n_positive']}<" in row
    for figure in ("-roc", "-pr", "-rel", "-dca", "-scores"):
        assert f'id="label-0-0{figure}-t"' in text


def test_every_metric_and_gap_has_words() -> None:
    for name in (*METRICS, *COMBINED, *VALUE_METRICS):
        known = words.MEASURES[name]
        assert known.plain, name
        assert known.formal, name


def test_heat_map_crosses_two_attributes_with_sizes_and_margins() -> None:
    audit = rich()
    (block,) = audit["labels"].values()
    (part,) = intersections.heat_parts("sex*site", block["attributes"]["sex*site"], block)
    table = next(inner.table for inner in part.parts if inner.table is not None)
    assert table.columns == ("sex", "a", "b", "all")
    assert [row.name for row in table.rows] == ["f", "m", "all"]
    assert table.rows[0].cells[0].small == "n = 20"
    assert intersections.heat_parts("sex", block["attributes"]["sex"], block) == []


def test_heat_is_darkest_where_it_is_worst() -> None:
    groups = {
        f"{a}*{b}": {"n": 30, "auc": {"value": v}, "fpr": {"value": v}}
        for (a, b), v in zip([("f", "x"), ("f", "y"), ("m", "x"), ("m", "y")], (0.6, 0.7, 0.8, 0.9), strict=True)
    }
    (part,) = intersections.heat_parts("sex*site", {"groups": groups, "gaps": {}}, {"attributes": {}})
    auc, fpr = (inner.table for inner in part.parts)
    assert auc is not None
    assert fpr is not None
    assert [[cell.shade for cell in row.cells] for row in auc.rows] == [[5, 3], [1, 0]]
    assert [[cell.shade for cell in row.cells] for row in fpr.rows] == [[0, 1], [3, 5]]


def test_deep_attributes_have_the_ranked_list_and_no_map() -> None:
    audit = pages.audit(keys={"sex*site*age": [f"{a}*{b}*{c}" for a in "fm" for b in "xy" for c in "12"]})
    (block,) = audit["labels"].values()
    assert intersections.intersection_section("k", "y", block, "95%", 0.05) is None
    item = {"attribute": "sex*site*age", "group": "f*x*1", "metric": "auc", "effect": 0.1, "lower": 0.0, "upper": 0.2, "p_adjusted": 0.2}
    block["intersections"] = [item] * 20
    found = intersections.intersection_section("k", "y", block, "95%", 0.05)
    assert found is not None
    assert "0 of 20 comparisons have an adjusted p below 0.05" in found.parts[0].text
    assert found.parts[1].fold == "All 20 comparisons"


def test_power_and_bounds_bear_what_cannot_be_estimated() -> None:
    power = {"auc": {"n_patients": 8, "detectable": None, "pair": None, "needed": {"0.1": None}}}
    section = evidence.power_section("k", {"attributes": {"sex": {"power": power}}})
    assert section is not None
    assert section.parts[0].table is None
    assert section.parts[0].text.startswith("By sex: fewer than two groups have enough patients")
    gap = {"value": None, "reason": "x", "bounds": {"lower": None, "upper": None, "reason": "x"}}
    block = {"overall": {"n": 10}, "attributes": {"sex": {"n_missing": 2, "gaps": {"auc": gap}, "groups": {}}}}
    section = evidence.missing_section("k", block)
    assert section is not None
    assert section.parts[0].text == "sex is not recorded for 2 images (20.0%)."


def test_case_mix_without_a_common_support_says_so() -> None:
    entry = {"gap": pages.hole(), "excluded": []}
    block = {"attributes": {"sex": {"explained": {"columns": ["age"], "metrics": {"auc": entry}, "prevalence_matched": {}}}}}
    section = explained.explained_section("k", block, "95%")
    assert section is not None
    inner = section.parts[0].parts[0]
    assert inner.text == "No gap can be estimated with the same mix of age."
    assert inner.table is not None
    assert inner.table.rows[0].cells[0].state == "none"


def test_under_diagnosis_of_a_healthy_label_is_the_false_positive_rate() -> None:
    audit = rich()
    (block,) = audit["labels"].values()
    for attribute in block["attributes"].values():
        attribute["gaps"]["underdiagnosis"]["measure"] = "fpr"
    section = harms.underdiagnosis_section("k", "No Finding", block, "95%")
    assert section is not None
    assert "means health" in section.hint
    assert section.parts[0].text.startswith("Wrongly called 'No Finding': 23% in m and 23% in f.")


def test_sizes_show_patients_images_and_positives() -> None:
    section = sizes_section(pages.audit())
    assert section is not None
    table = section.parts[0].table
    assert table is not None
    assert table.columns == ("group", "images", "share", "patients", "positive")
    assert [cell.text for cell in table.rows[0].cells] == ["20", "20.0%", "10", "5"]
    assert table.rows[-1].kind == "missing"


def test_continuous_values_have_a_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"hd95": rng.gamma(2, 4, 300), "sex": rng.choice(["f", "m"], 300), "site": rng.choice(["x", "y"], 300)})
    config = AuditConfig(bootstrap=50, permutations=50)
    result = evaluate_values(frame, values=["hd95"], attributes=["sex", "sex*site"], config=config, units={"hd95": "mm"})
    text = text_of(write_audit_report(result.to_json(), result.predictions, tmp_path / "r.html"))
    assert "Lower is better." in text
    assert "How the values spread" in text
    assert "hd95 (mm)" in text
    assert "AUC" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    assert "positive" not in text.lower()


def test_pages_of_many_labels_and_groups_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_pictures, "REPLICATES", 20)
    labels = tuple(f"finding {i}" for i in range(14))
    keys = {name: [f"{name}{i}" for i in range(4)] for name in ("sex", "age", "site")}
    path = write_audit_report(pages.audit(labels, keys), pages.predictions(labels, keys, n=1200), tmp_path / "r.html")
    assert path.stat().st_size < 3_000_000
    forty = {"site*age": [f"s{i}*a{j}" for i in range(8) for j in range(5)]}
    path = write_audit_report(pages.audit(keys=forty), pages.predictions(keys=forty, n=4000), tmp_path / "f.html")
    assert path.stat().st_size < 2_000_000


def test_phone_and_print_rules_are_there() -> None:
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    phone, paper = css.split("@media screen and (max-width:760px)")[1].split("@media print")
    assert ".scroll{overflow-x:auto" in css
    assert "figure .small svg{max-width:100%}" in phone
    assert "details::details-content{content-visibility:visible" in paper
    assert "break-inside:avoid" in paper


def test_tables_of_curves_have_the_curves_numbers() -> None:
    view = audit_page(pages.audit(), pages.predictions(n=600), {})
    (label,) = view["labels"]
    (curves,) = [s for s in label.sections if s.id == "label-0-curves"]
    shown = [f for part in parts_of(curves) for f in part.figures]
    assert [f.title.split(" by ")[0] for f in shown] == [
        "ROC curves",
        "Precision-recall curves",
        "Reliability",
        "Decision curves",
        "Scores",
    ]
    for figure in shown:
        assert isinstance(figure.numbers, tables.Table)
        for row in figure.numbers.rows:
            assert all(cell.text for cell in row.cells[:3])


DRIVER = {
    "attribute": "sex",
    "joint": "sex*site",
    "without": "f*a",
    "metric": "auc",
    "groups": ["f", "m"],
    "gap": 0.12,
    "gap_without": 0.0311,
    "change": 0.0889,
    "lower": 0.011,
    "upper": 0.167,
    "share": 0.741,
    "n": 21,
    "n_patients": 10,
}


def test_a_gap_hangs_on_an_intersection_only_where_it_is_clear() -> None:
    (block,) = rich()["labels"].values()
    assert drivers.driver_parts(block) == []
    block["drivers"] = [DRIVER, {**DRIVER, "without": "m*b", "change": -0.02}, {**DRIVER, "change": None, "reason": "8 patients"}]
    first, every = drivers.driver_parts(block)
    assert first.text.startswith("The AUC gap between f and m is 0.120; without f × a it is 0.031. Leaving")
    assert first.table is not None
    assert every.table is not None
    assert [len(part.table.rows) for part in (first, every) if part.table] == [1, 2]
    assert first.table.rows[0].cells[4].text == "74%"
    block["attributes"]["sex"]["gaps"]["auc"]["lower"] = 0.0
    first, every = drivers.driver_parts(block)
    assert "none is said to hang on one" in first.text
    assert every.table is not None
    assert {row.cells[4].text for row in every.table.rows} == {"–"}


def test_a_small_gap_has_no_share() -> None:
    (block,) = rich()["labels"].values()
    block["drivers"] = [{**DRIVER, "gap": 0.006, "share": 36.4}]
    assert "3640%" not in str(drivers.driver_parts(block))


def test_drivers_are_on_the_page_and_absent_without_a_trace(tmp_path: Path) -> None:
    audit = rich()
    heading = "On which intersection a gap hangs"
    assert heading not in text_of(write_audit_report(audit, None, tmp_path / "r.html"))
    next(iter(audit["labels"].values()))["drivers"] = [DRIVER]
    text = text_of(write_audit_report(audit, None, tmp_path / "r.html"))
    assert text.index('">Where groups cross</h3>') < text.index(heading) < text.index('">Attributes that are not recorded</h3>')


def test_the_page_writes_crossed_groups_in_one_way(tmp_path: Path) -> None:
    audit = rich()
    audit["verdicts"][0]["text"] = "malignant: AUC differs between groups of sex*site; furthest apart are f*a (lower) and m*b (higher)."
    audit["provenance"]["notes"] = ["'sex*site' has 1 group of one patient: f*b"]
    text = text_of(write_audit_report(audit, None, tmp_path / "r.html"))
    assert "groups of sex × site; furthest apart are f × a (lower) and m × b (higher)." in text
    assert "<li>&#39;sex × site&#39; has 1 group of one patient: f × b.</li>" in text
    before, _, _ = text.partition('id="made"')
    assert not re.search(r"(sex\*site|[fm]\*[ab])", re.sub(r"<style>.*?</style>", "", before, flags=re.S))


def test_mirror_images_of_two_groups_count_once() -> None:
    item = {"attribute": "sex", "group": "f", "metric": "auc", "effect": 0.1, "lower": 0.0, "upper": 0.2, "p_adjusted": 0.01}
    ranked = [item, {**item, "group": "m", "effect": -0.1}, {**item, "metric": "tpr"}, {**item, "group": "m", "metric": "tpr"}]
    assert [(i["group"], i["metric"]) for i in intersections.without_mirrors(ranked)] == [("f", "auc"), ("f", "tpr")]
    three = [{**item, "group": group} for group in "abc"]
    assert len(intersections.without_mirrors(three)) == 3


def test_everyone_stands_beside_every_gap() -> None:
    (block,) = rich()["labels"].values()
    table = tables.gap_table("sex", block["attributes"]["sex"], None, block["overall"])
    assert table.columns[2] == "everyone"
    assert "left out" not in table.columns
    shown = {row.name: (row.cells[1].text, row.cells[1].small) for row in table.rows}
    assert shown["AUC gap"] == ("0.810", "")
    assert shown["equalized odds difference"] == ("TPR 0.720", "FPR 0.230")
    assert shown["under-diagnosis gap"] == ("0.280", "FNR")


def test_disparate_impact_without_a_reference_is_not_said_twice() -> None:
    (block,) = rich()["labels"].values()
    gaps = block["attributes"]["sex"]["gaps"]
    gaps["disparate_impact"] = dict(gaps["demographic_parity_ratio"])
    for value, shown in ((gaps["disparate_impact"]["value"], False), (0.5, True)):
        gaps["disparate_impact"]["value"] = value
        parts = performance_parts("k", "sex", block["attributes"]["sex"], block["overall"])
        (table,) = [part.table for part in parts if part.caption.startswith("Gaps between")]
        assert table is not None
        assert ("disparate impact" in [row.name for row in table.rows]) == shown


def test_summary_of_many_labels_says_what_it_can() -> None:
    audit = pages.audit(tuple(f"y{i}" for i in range(6)), broken=True)
    said = summary.audit_summary(audit, {})[2]
    assert all("cannot be estimated for any of the 6 labels" in str(point) for point in said.points)
    audit = pages.audit((*(f"y{i}" for i in range(5)), "macro"))
    audit["kind"] = "multiclass"
    who, overall, gaps, *_ = summary.audit_summary(audit, {})
    assert "5 classes against the rest" in who.texts[0]
    assert "5 of 5 classes" in overall.texts[0]
    assert "Their mean: 0.81" in overall.texts[0]
    assert gaps.texts == ("Of 24 tested gaps, none has an adjusted p below 0.05: a difference is shown for none, and ruled out for none.",)
    assert "the interval excludes 0 for 5: y0 0.120" in str(gaps.points[0])
