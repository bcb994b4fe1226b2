"""Write the audit page and the compare page: one self-contained HTML file each, without scripts, readable offline.

The pages are made from audit.json's and the comparison's dictionaries and, for curves, the predictions table; they hold
no patient ids and no images. Equal input gives equal bytes: no clock is read, and dates come from the dictionary only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenhand.errors import InputError
from evenhand.files import write_text

if TYPE_CHECKING:
    import pandas as pd

    from evenhand.report.page import Section

AUDIT_SCHEMA = "evenhand.audit/1"
COMPARE_SCHEMA = "evenhand.compare/1"
TEMPLATES = Path(__file__).parent / "templates"


def write_audit_report(
    audit: Mapping[str, Any],
    predictions: pd.DataFrame | None,
    path: str | Path,
    *,
    title: str = "Performance across patient groups",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write the page of one audit.

    Args:
        audit: the dictionary of audit.json (schema ``evenhand.audit/1``).
        predictions: the predictions table, for ROC curves and score distributions; None leaves them out.
        path: the HTML file; replaced as a whole or not at all.
        title: the heading of the page.
        facts: what was run, by name, such as ``{"data": "ham10000-mini", "model": "vit_small", "method": "linear_probe"}``.

    Returns:
        The path that was written.

    Raises:
        InputError: the dictionary is of another schema.
        DiskFullError: no space left; nothing is left behind.
    """
    from evenhand.report.audit_page import audit_page
    from evenhand.report.summary import confidence_of, joined

    _check(audit, AUDIT_SCHEMA)
    known = {**{k: str(v) for k, v in audit.get("provenance", {}).items() if k in ("data", "model", "method") and v}, **(facts or {})}
    view = audit_page(audit, predictions, known)
    page = {
        "title": title,
        "eyebrow": "Audit report",
        "lead": joined([known.get("data", ""), known.get("model", ""), known.get("method", "")]) or _lead(audit),
        "contents": view["contents"],
        "version": str(audit.get("provenance", {}).get("version", "")),
        "source": "a table of predictions",
        "confidence": confidence_of(audit),
    }
    return _write(render("audit.html.j2", page=page, **view), Path(path))


def _lead(audit: Mapping[str, Any]) -> str:
    """Below the title, where neither data nor model have a name: how many were looked at, by what."""
    from evenhand.report import words

    names = dict.fromkeys(a for block in audit["labels"].values() for a in block["attributes"])
    by = f", by {words.listing([words.group_label(name, name) for name in names], 6)}" if names else ""
    return f"{words.plural(audit['n'], 'image')} of {words.plural(audit['n_patients'], 'patient')}{by}"


def write_compare_report(compare: Mapping[str, Any], path: str | Path, *, title: str = "Comparison of runs") -> Path:
    """Write the page of a comparison of runs.

    Args:
        compare: the comparison's dictionary (schema ``evenhand.compare/1``).
        path: the HTML file; replaced as a whole or not at all.
        title: the heading of the page.

    Returns:
        The path that was written.

    Raises:
        InputError: the dictionary is of another schema.
        DiskFullError: no space left; nothing is left behind.
    """
    from evenhand.report.compare_page import compare_page
    from evenhand.report.summary import confidence_of, joined

    _check(compare, COMPARE_SCHEMA)
    view = compare_page(compare)
    page = {
        "title": title,
        "eyebrow": "Comparison report",
        "lead": joined([run["name"] for run in compare["runs"]]),
        "contents": view["contents"],
        "version": str(compare.get("provenance", {}).get("version", "")),
        "source": "the predictions of the runs",
        "confidence": confidence_of(compare),
    }
    return _write(render("compare.html.j2", page=page, **view), Path(path))


def render(template: str, **values: Any) -> str:
    """A template filled in, everything escaped, names that do not exist refused."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, optimized=False
    )
    css = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, **values).strip() + "\n"


def write_sections(
    path: Path, *, title: str, eyebrow: str, about: str, heading: str, lead: str, facts: Sequence[tuple[str, str]],
    sections: Sequence[Section], version: Any, source: str, foot: str = "",
) -> Path:
    """Write a page of facts and sections, what all but audits and comparisons are.

    Args:
        path: the HTML file.
        title, eyebrow, about: its head: what it is, the kind above it, what it is about below it.
        heading, lead, facts: the first section: its title, its words, (name, value) rows.
        sections: the others.
        version: of the package that made the numbers.
        source: what they were made from, for the foot.
        foot: what the page says of itself; default: what a page about a model's performance says.
    """
    contents = [("facts", heading), *((section.id, section.title) for section in sections)]
    page = {"title": title, "eyebrow": eyebrow, "lead": about, "contents": contents, "version": str(version or ""), "source": source}
    page |= {"foot": foot} if foot else {}
    return _write(render("edit.html.j2", page=page, heading=heading, lead=lead, facts=list(facts), sections=list(sections)), path)


def _check(document: Mapping[str, Any], schema: str) -> None:
    arrived = document.get("schema")
    if arrived != schema or not document.get("labels"):
        raise InputError(f"the report needs a dictionary of schema '{schema}' with at least one label, but got schema {arrived!r}")


def _write(text: str, path: Path) -> Path:
    write_text(path, text)
    return path
