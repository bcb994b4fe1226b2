"""What stands out in a data card, in sentences: leaks, shortcuts, what can be read from images, what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.evaluation.data_counts import ALL, MISSING, OVERALL
from evenhand.metrics.permutation import holm

Json = Mapping[str, Any]

PLAIN_AUC = 0.6
"""An attribute that is read with at least this AUC, above what chance gives, is called readable."""
LEVEL = 0.05
MUCH_MISSING = 0.05
LEAST_TEST_PATIENTS = 10


def card_findings(card: Json) -> list[dict[str, str]]:
    """One record for everything that should be known before training.

    Args:
        card: the dictionary of card.json.

    Returns:
        Records of ``code`` (no_groups, leak, near_duplicates, shortcut, association, readable, statistics, missing, small_group,
        counts) and ``text``, in this order.
    """
    return [
        *_no_groups(card),
        *_leaks(card),
        *_near(card),
        *_associations(card),
        *_readable(card),
        *_by_statistics(card),
        *_missing(card),
        *_small(card),
        *_counts(card),
    ]


def _record(code: str, text: str) -> dict[str, str]:
    return {"code": code, "text": text}


def _plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}".replace(",", "\u202f")


def _no_groups(card: Json) -> list[dict[str, str]]:
    """What nobody could have found: sets without an attribute, and attributes of one group."""
    attributes = card["attributes"]
    if not attributes:
        text = (
            "No attribute was prepared: nothing could be looked at by group, neither who is in the set nor shortcuts. "
            "Prepare it again with --attributes, if it has any."
        )
        return [_record("no_groups", text)]
    single = [name for name, groups in attributes.items() if len(set(groups) - {MISSING, OVERALL}) < 2]
    return [_record("no_groups", f"{name} has one group alone: nothing could be compared by it.") for name in single]


def _leaks(card: Json) -> list[dict[str, str]]:
    found, out = card["leaks"], []
    if found["patients"]:
        out.append(_record("leak", f"{_plural(found['patients'], 'patient')} in more than one split: test results would be too good."))
    if found["images"]:
        out.append(
            _record("leak", f"{_plural(found['images'], 'image')} of equal content in more than one split: test results would be too good.")
        )
    if found["equal_across_patients"]:
        text = f"{_plural(found['equal_across_patients'], 'image')} of equal content under different patients: an id may be wrong."
        out.append(_record("leak", text))
    return out


def _near(card: Json) -> list[dict[str, str]]:
    found = card["near_duplicates"]
    out = []
    if found["across_splits"]:
        text = f"{_plural(found['across_splits'], 'pair')} of nearly equal images across splits; look at them below."
        out.append(_record("near_duplicates", text))
    if found["across_patients"]:
        text = f"{_plural(found['across_patients'], 'pair')} of nearly equal images of different patients in one split; look at them below."
        out.append(_record("near_duplicates", text))
    return out


def strongest(association: Json, split: str) -> tuple[str, Json] | None:
    """The group whose odds ratio in a split is the least likely by chance; None where there is no ratio."""
    known = [(key, found[split]) for key, found in association.items() if split in found and found[split]["value"] is not None]
    return min(known, key=lambda item: float(item[1]["p"]), default=None)


def learning_split(card: Json) -> str:
    """The split that a model learns from; of a set without one the first it has."""
    return next(name for name in ("train", "val", "test") if name in card["splits"])


def sure_associations(card: Json) -> set[tuple[str, str, str]]:
    """(label, attribute, group) whose odds ratios where a model learns hold after Holm's correction over all of the card."""
    split = learning_split(card)
    known = {
        (label, attribute, key): own[split]["p"]
        for label, block in card["labels"].items()
        for attribute, found in block["attributes"].items()
        for key, own in found["association"].items()
        if split in own and own[split]["value"] is not None
    }
    corrected = holm(list(known.values()))
    return {key for key, p in zip(known, corrected, strict=True) if p is not None and p < LEVEL}


def _associations(card: Json) -> list[dict[str, str]]:
    """Labels that go with a group where a model learns."""
    split, sure = learning_split(card), sure_associations(card)
    out = []
    for label, block in card["labels"].items():
        for attribute, found in block["attributes"].items():
            if "*" in attribute:
                continue
            best = strongest(found["association"], split)
            if best is None or (label, attribute, best[0]) not in sure:
                continue
            key, here = best
            reads = readable(card, attribute)
            text = (
                f"{label} goes with {attribute}: its odds in the {split} split are {_number(here)} times as high in {key} as in the others"
            )
            test = found["association"][key].get("test") if split == "train" else None
            parted = test is not None and test["value"] is not None and (test["upper"] < here["lower"] or test["lower"] > here["upper"])
            if test is not None and test["value"] is not None:
                text += f" (test: {_number(test)}{'; the intervals do not meet' if parted else ''})"
            if reads:
                text += f"; and {attribute} can be read from the images (AUC {reads['value']:.2f}). A model can gain by reading it"
            out.append(_record("shortcut" if reads else "association", f"{text}."))
    return sorted(out, key=lambda record: record["code"] != "shortcut")


def _number(estimate: Json) -> str:
    return f"{estimate['value']:.2g} ({estimate['lower']:.2g} to {estimate['upper']:.2g})"


def readable(card: Json, attribute: str) -> Json | None:
    """The AUC over folds with which the encoder reads an attribute, where it is plainly above chance."""
    found = ((card.get("probe") or {}).get("attributes") or {}).get(attribute, {}).get("encoder")
    return found["folds"] if found and _above(found) else None


def _above(found: Json) -> bool:
    folds, chance = found["folds"], found.get("chance")
    if folds["value"] is None or folds["value"] < PLAIN_AUC or folds["lower"] <= 0.5:
        return False
    return chance is None or bool(chance["above"])


def _readable(card: Json) -> list[dict[str, str]]:
    out = []
    for attribute, found in ((card.get("probe") or {}).get("attributes") or {}).items():
        auc = None if "*" in attribute else readable(card, attribute)
        if auc:
            chance = found["encoder"].get("chance")
            beside = f"; chance gives {chance['lower']:.2f} to {chance['upper']:.2f}" if chance else ""
            text = f"{attribute} can be read from the images: AUC {_auc(auc)}{beside}."
            plain = found["statistics"]
            if _above(plain):
                text += (
                    f" Grey level, contrast and sharpness alone give {_auc(plain['folds'])}, which may be the device as well as "
                    "the patient."
                )
            out.append(_record("readable", text))
    return out


def _auc(estimate: Json) -> str:
    return f"{estimate['value']:.2f} ({estimate['lower']:.2f} to {estimate['upper']:.2f})"


def _by_statistics(card: Json) -> list[dict[str, str]]:
    """Labels that need no look at the picture."""
    out = []
    for label, found in ((card.get("probe") or {}).get("labels") or {}).items():
        if _above(found["statistics"]):
            text = f"{label} can be read from grey level, contrast and sharpness alone: AUC {_auc(found['statistics']['folds'])}."
            out.append(_record("statistics", text))
    return out


def _missing(card: Json) -> list[dict[str, str]]:
    out = []
    for attribute, groups in card["attributes"].items():
        n = groups.get(MISSING, {})
        split = ALL if ALL in n else next(iter(n), None)
        if split is None or "*" in attribute or not isinstance(n[split]["n"], int):
            continue
        share = n[split]["n"] / card["data"]["n"]
        if share >= MUCH_MISSING:
            out.append(_record("missing", f"{attribute} is not recorded for {share:.0%} of the images; no gap can be told for these."))
    return out


def _small(card: Json) -> list[dict[str, str]]:
    """Groups of which the test split has too few patients for any rate."""
    if "test" not in card["splits"]:
        return []
    out = []
    for attribute, groups in card["attributes"].items():
        few = [
            key
            for key, sizes in groups.items()
            if key not in (MISSING, OVERALL)
            and (not isinstance(sizes["test"]["n_patients"], int) or sizes["test"]["n_patients"] < LEAST_TEST_PATIENTS)
            and sizes["test"]["n_patients"] != "withheld"
        ]
        if few:
            shown = ", ".join(few[:6]) + (f" and {len(few) - 6} more" if len(few) > 6 else "")
            text = (
                f"{attribute}: fewer than {LEAST_TEST_PATIENTS} test patients in {shown}; nothing can be said of how a model works there."
            )
            out.append(_record("small_group", text))
    return out


def _counts(card: Json) -> list[dict[str, str]]:
    """Counts that the provider has published and that are others here; of several published ones any may hold."""
    expected: Sequence[Json] = card["source"].get("expected") or []
    out = []
    for what in dict.fromkeys(item["what"] for item in expected):
        known = [item for item in expected if item["what"] == what]
        found = known[0]["found"]
        if found is not None and found not in [item["count"] for item in known]:
            said = " or ".join(f"{item['count']:,} ({item['origin']})" for item in known)
            out.append(_record("counts", f"{what}: {found:,} were found, the provider says {said}."))
    return out


_WHAT = "row|image file|image|patient|value|cell|file|case|slice|session|lesion"
_COUNT = re.compile(rf"(?<![\w.,])(?P<n>\d[\d,]*)(?P<what> (?:of \d[\d,]* )?(?:{_WHAT})s?)\b(?P<rest>[^:;]*)")
_QUOTED = re.compile(r"(?<=' )\d+(?=[,)])")
_VERBS = {"was": "were", "is": "are", "has": "have", "does": "do", "counts": "count", "repeats": "repeat", "holds": "hold", "its": "their"}


def private_notes(notes: Sequence[str], least: int) -> list[str]:
    """Notes of the preparation with small counts of rows or patients taken out, and 1 not told from 2 by its grammar.

    Example:
        >>> private_notes(["attribute 'sex' is missing in 3 of 48 rows", "1 row was left out", "sex: 1 value is odd ('X' 1)"], 5)
        ["attribute 'sex' is missing in <5 of 48 rows", '<5 rows were left out', "sex: <5 values are odd ('X' <5)"]
    """
    if least <= 1:
        return list(notes)

    def small(text: str) -> bool:
        return 0 < int(text.replace(",", "")) < least

    def fewer(found: re.Match[str]) -> str:
        rest = _COUNT.sub(fewer, found["rest"])
        if not small(found["n"]):
            return f"{found['n']}{found['what']}{rest}"
        if found["n"] != "1":
            return f"<{least}{found['what']}{rest}"
        plural = found["what"] if found["what"].endswith("s") else f"{found['what']}s"
        return f"<{least}{plural}{re.sub(r'[a-z]+', lambda word: _VERBS.get(word[0], word[0]), rest)}"

    shown = [_QUOTED.sub(lambda found: f"<{least}" if small(found[0]) else found[0], _COUNT.sub(fewer, note)) for note in notes]
    return [note.replace("groups of one patient", f"groups of fewer than {least} patients") for note in shown]
