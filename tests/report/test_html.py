"""The pages: self-contained, escaped, deterministic, without ids, and complete where nothing can be estimated."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.errors import DiskFullError, InputError
from evenhand.evaluation.evaluate import evaluate
from evenhand.report.curve_pictures import audited_rows
from evenhand.report.html import write_audit_report, write_compare_report
from evenhand.report.summary import _gaps_few
from tests.report import pages

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Balance(HTMLParser):
    """Collects tags that are not closed in order, ids, and addresses that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found.get("href")))
        self.loads += [str(found[key]) for key in ("src", "action") if key in found] + (
            [tag] if tag in ("script", "link", "iframe") else []
        )

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> tuple[str, Balance]:
    text = path.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    return text, parser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Balance]:
    path = tmp_path_factory.mktemp("page") / "report.html"
    return read(write_audit_report(pages.audit(), pages.predictions(), path, facts={"data": "ham", "model": "vit"}))


def test_page_loads_nothing_and_runs_nothing(page: tuple[str, Balance]) -> None:
    text, parser = page
    assert parser.loads == []
    assert "@import" not in text
    assert "url(http" not in text
    assert all(link.startswith("#") and link[1:] in parser.ids for link in parser.links)


def test_ids_are_unique(page: tuple[str, Balance]) -> None:
    assert len(page[1].ids) == len(set(page[1].ids))


def test_no_patient_and_no_image_name_reaches_the_page(page: tuple[str, Balance]) -> None:
    assert "secret-" not in page[0]
    assert "patient-" not in page[0]


def test_summary_comes_before_verdicts_and_numbers(page: tuple[str, Balance]) -> None:
    marks = (
        "Who was looked at",
        "What cannot be said",
        "<h2>Verdicts",
        "<h2>What was audited",
        "How large the groups are</h3>",
        "Everyone</h3>",
        "By sex</h3>",
        "How far groups lie apart</h3>",
        "Scores and curves</h3>",
        "Attributes that are not recorded</h3>",
        "<h2>What the measures mean",
        "<h2>How every number was made",
    )
    places = [page[0].index(mark) for mark in marks]
    assert places == sorted(places)


def test_missing_attribute_has_a_row_of_its_own(page: tuple[str, Balance]) -> None:
    assert '<tr class="missing">' in page[0]
    assert "enters no gap" in page[0]


def test_every_figure_has_a_text_alternative_and_a_caption(page: tuple[str, Balance]) -> None:
    figures = re.findall(r"<figure.*?</figure>", page[0], flags=re.S)
    assert len(figures) == 7
    assert all('role="img" aria-labelledby="' in f and "<figcaption><b>" in f for f in figures)
    assert all(re.search(r'<title id="[^"]+">[^<]+</title><desc id="[^"]+">[^<]{20,}</desc>', f) for f in figures)


@pytest.mark.parametrize("word", ["fair model", "debiased", "unbiased", "bias-free", "fairness guaranteed"])
def test_words_promise_nothing(page: tuple[str, Balance], word: str) -> None:
    assert word not in page[0].lower()


def test_hostile_names_are_escaped_everywhere(tmp_path: Path) -> None:
    keys = {pages.NASTY: [pages.NASTY, "_under", "日本"]}
    path = write_audit_report(
        pages.audit((pages.NASTY,), keys), pages.predictions(keys=keys), tmp_path / "r.html", title=pages.NASTY, facts={"data": pages.NASTY}
    )
    text, _ = read(path)
    assert "<b>&" not in text
    assert '&"$x_' not in text
    assert "&lt;b&gt;&amp;" in text


def test_equal_input_gives_equal_bytes(tmp_path: Path, page: tuple[str, Balance]) -> None:
    again = write_audit_report(pages.audit(), pages.predictions(), tmp_path / "r.html", facts={"data": "ham", "model": "vit"})
    assert again.read_text(encoding="utf-8") == page[0]


def test_where_nothing_can_be_estimated_the_page_says_so(tmp_path: Path) -> None:
    text, _ = read(write_audit_report(pages.audit(broken=True), None, tmp_path / "r.html"))
    assert "No gap could be estimated" in text
    assert "AUC cannot be estimated (4 patients in the denominator" in text
    assert "<td>0.000" not in text


def test_fourteen_labels_get_a_heat_map_and_a_fold_each(tmp_path: Path) -> None:
    names = tuple(f"finding {i}" for i in range(14))
    text, _ = read(write_audit_report(pages.audit(names), None, tmp_path / "r.html"))
    assert text.index("All labels at a glance") < text.index("Each label</h2>")
    assert text.count('<details id="label-') == 14
    assert "details::details-content" in text


def test_forty_intersections_are_all_in_the_table_and_few_curves_are_named(tmp_path: Path) -> None:
    keys = {"site*age": [f"s{i}*[{10 * j},{10 * j + 10})" for i in range(8) for j in range(5)]}
    text, _ = read(write_audit_report(pages.audit(keys=keys), pages.predictions(keys=keys, n=1500), tmp_path / "r.html"))
    assert all(f"s{i} × [{10 * j},{10 * j + 10})</th>" in text for i in range(8) for j in range(5))
    assert "33 further groups" in text


def test_compare_page_says_who_gained_and_who_lost(tmp_path: Path) -> None:
    text, parser = read(write_compare_report(pages.compare(), tmp_path / "c.html"))
    assert "gained: f (FPR −0.080); lost: f (AUC −0.090)" in text
    assert "Levelling down" in text
    assert "SD 0.011" in text
    assert parser.loads == []


def test_compare_of_one_run_is_written(tmp_path: Path) -> None:
    text, _ = read(write_compare_report(pages.compare(("probe",)), tmp_path / "c.html"))
    assert "nothing changed" in text


@pytest.mark.parametrize("write", [lambda d, p: write_audit_report(d, None, p), write_compare_report])
def test_another_schema_is_refused_and_nothing_written(tmp_path: Path, write: Any) -> None:
    with pytest.raises(InputError, match="schema"):
        write({"schema": "other/1", "labels": {"a": {}}}, tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_old_page_and_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.html").write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFullError, match="no space left"):
        write_compare_report(pages.compare(("probe",)), tmp_path / "r.html")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("r.html", "old")]


def test_importing_the_report_stays_light() -> None:
    code = ("import sys, evenhand.report.html as h, evenhand.report.audit_page; print([m "
"for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_curves_are_of_the_rows_and_groups_that_were_audited() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"y_true": rng.integers(0, 2, 200), "y_score": rng.random(200), "age": rng.integers(20, 80, 200).astype(float)})
    frame["split"] = np.where(np.arange(200) % 2, "Test ", "val")
    frame["age__group"] = "stored"
    frame.loc[:9, "age"] = np.nan
    for missing, left in (("own_group", 100), ("drop", 95)):
        config = AuditConfig(bootstrap=10, permutations=0)
        audit = evaluate(frame, labels=["y"], attributes=["age"], config=config, bins={"age": (0, 50, 90)}, missing=missing)
        rows, members = audited_rows(frame, audit.to_json())
        assert len(rows) == left == audit.to_json()["n"]
        assert set(members["age"]) - {""} == {"[0,50)", "[50,90)"}


def test_an_interval_without_0_is_not_praised_where_the_adjusted_p_is_large() -> None:
    gap = {"value": 0.2, "lower": 0.02, "upper": 0.4, "p": 0.03, "p_holm": 0.2, "groups": ["f", "m"]}
    block = {"attributes": {"sex": {"groups": {}, "gaps": {"equalized_odds": gap}}}}
    said = str(_gaps_few({"labels": {"y": block}, "provenance": {"confidence": 0.95}}))
    assert "not strong once the number of tests is counted" in said
    gap["p_holm"] = 0.01
    assert "not strong" not in str(_gaps_few({"labels": {"y": block}}))
