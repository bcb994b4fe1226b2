"""The page of results in and out of distribution: what it says, what it leaves open, and that it is one offline file."""

import copy

import pytest

from evenhand.errors import InputError
from evenhand.evaluation.transfer import OWN, JudgedSet, transfer
from evenhand.report.transfer_page import transfer_facts, write_transfer_page


def estimate(value, lower, upper):
    return {"value": value, "lower": lower, "upper": upper, "n": 100}


def block(auc, attribute, groups):
    rows = {key: {"n": 50, "n_patients": 50, "auc": auc} for key in groups}
    gaps = {"auc": {**estimate(0.1, 0.0, 0.2), "excluded": []}, "equalized_odds": {**estimate(0.2, 0.1, 0.3), "excluded": []}}
    overall = {"n": 100, "n_patients": 90, "n_positive": 30, "auc": auc, "tpr": estimate(0.8, 0.7, 0.9), "fpr": estimate(0.2, 0.1, 0.3)}
    return {"ill": {"overall": overall, "attributes": {attribute: {"groups": rows, "gaps": gaps}}}}


@pytest.fixture
def result():
    own = JudgedSet(block(estimate(0.9, 0.88, 0.92), "sex", ("F", "M")), "ham", 100, 90)
    pad = JudgedSet(block(estimate(0.7, 0.65, 0.75), "sex", ("F", "M")), "pad-ufes", 80, 60, ("three patients are in both",))
    sets = {OWN: own, "pad": pad, "tone": JudgedSet(block(estimate(0.85, 0.7, 0.95), "skin<tone>", ("I", "VI")), "fitz", 80, 60)}
    change = {"value": -0.05, "lower": -0.08, "upper": -0.02, "n": 100}
    changes = {name: {"ill": {"patched": {"overall": {"auc": change}, "gaps": {"sex": {"auc": change}}}}} for name in sets}
    found = transfer({"delivered": sets, "patched": copy.deepcopy(sets)}, changes=changes, provenance={"runs": {}})
    return found.to_json()


def test_the_page_has_every_run_on_every_set_and_is_offline(result, tmp_path):
    text = write_transfer_page(result, tmp_path / "report.html").read_text()
    for words in ("delivered: own test rows", "patched: pad", "▼ −0.200", "Runs side by side", "AUC gap by sex −0.050", "Drop in AUC"):
        assert words in text
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in text
    assert "skin<tone>" not in text


def test_it_says_where_an_attribute_is_not_known(result, tmp_path):
    text = write_transfer_page(result, tmp_path / "report.html").read_text()
    assert "sex is not known in tone: there is no gap there" in text
    assert "is not known here" in text
    facts = dict(transfer_facts(result))
    assert facts["attribute sex"] == "known in own test rows and pad only; not in tone"
    assert facts["note on pad"] == "Three patients are in both."


def test_equal_input_gives_equal_bytes(result, tmp_path):
    one, other = (write_transfer_page(copy.deepcopy(result), tmp_path / name) for name in ("a.html", "b.html"))
    assert one.read_bytes() == other.read_bytes()


def test_another_dictionary_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"evenhand\.transfer/1"):
        write_transfer_page({"schema": "evenhand.audit/1"}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
