"""The page of a patch, from a dictionary made by hand: bars as long as the numbers, layers that stay, and sizes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from evenhand.report.patch_page import layer_table, layers_picture, patch_words, percent, size_table, write_patch_page


def change(name: str, n: int, changed: int, relative: float | None = None) -> dict[str, Any]:
    sizes = {"mean": None, "largest": None} if relative is None else {"mean": 0.001, "largest": 0.02}
    return {"name": name, "layer": name, "n": n, "changed": changed, "share": changed / n, "relative": relative, **sizes}


LAYERS = [change("conv1", 1000, 0), change("layer1.0", 2000, 500, 0.01), change("layer<2>", 4000, 4, 0.0001), change("head", 10, 10, 1.2)]
RECORD: dict[str, Any] = {
    "base_hash": "a" * 64,
    "result_hash": "b" * 64,
    "data_hash": "d" * 64,
    "sha256": "f" * 64,
    "model": {"name": "finetune", "state": "as delivered"},
    "n": 7010,
    "changed": 514,
    "share": 514 / 7010,
    "bytes": 6200,
    "model_bytes": 28040,
    "share_of_bytes": 6200 / 28040,
    "at_rates": [{"rate": 0.01, "bytes": 900, "share_of_bytes": 0.032}, {"rate": 0.5, "bytes": 15000, "share_of_bytes": 0.535}],
    "layers": LAYERS,
    "tensors": [{**item, "name": f"{item['name']}.weight"} for item in LAYERS],
    "history": {"method": {"name": "bmft", "rate": 0.5}, "seed": 3, "thresholds": {"ill": 0.25}, "attributes": ["sex", "age"]},
    "versions": {"evenhand": "0.1.0"},
}


def bars(svg: str, colour: str) -> list[float]:
    """Widths of the bars of a colour, in points."""
    found = re.findall(rf'<path d="M[\d.-]+ [\d.-]+h([\d.]+)v[\d.]+h-[\d.]+Z" fill="{colour}"', svg)
    return [float(width) for width in found]


def test_bars_are_as_long_as_the_shares() -> None:
    svg = str(layers_picture(RECORD).svg)
    shares, sizes = bars(svg, "#0072B2"), bars(svg, "#D55E00")
    assert len(shares) == len(sizes) == 3
    full = 2.7 * 72
    assert shares == pytest.approx([0.25 * full, 1.2, full], abs=0.2)
    assert sizes == pytest.approx([full / 1.05 * 0.01 / 1.2, 1.2, full / 1.05], abs=0.5)
    assert "layer&lt;2&gt;" in svg
    assert "layer<2>" not in svg


def test_without_the_model_there_is_one_panel_and_it_is_said(tmp_path: Path) -> None:
    record = copy.deepcopy(RECORD)
    record["model"] = None
    for item in [*record["layers"], *record["tensors"]]:
        item.update(mean=None, largest=None, relative=None)
    assert not bars(str(layers_picture(record).svg), "#D55E00")
    page = write_patch_page(record, tmp_path / "inspect.html").read_text()
    assert "give it with model=" in page
    assert "given here" not in page


def test_the_page_is_one_file_and_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    pages = [write_patch_page(RECORD, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    text = pages[0].decode()
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", text)
    for words in ("bmft", "ill 0.25", "sex, age", "finetune, as delivered", "a" * 64, "b" * 64, "6.2 kB", "3 tensors"):
        assert words in text
    assert "layer<2>" not in text


def test_words_and_tables() -> None:
    said = dict(patch_words(RECORD))
    assert said["changes"] == "514 of 7\u202f010 entries (7.33%) in 3 of 4 layers"
    assert said["size"] == "6.2 kB, 22.1% of the model's 28.0 kB"
    table = layer_table(RECORD)
    assert [row.name for row in table.rows] == ["conv1", "layer1.0", "layer<2>", "head"]
    assert [cell.text for cell in table.rows[0].cells] == ["1\u202f000", "0", "0%", "–", "–", "–"]
    assert [cell.text for cell in table.rows[1].cells] == ["2\u202f000", "500", "25.0%", "0.001", "0.02", "1.00%"]
    assert [row.name for row in size_table(RECORD).rows] == ["this patch", "rate 1%", "rate 50%", "the whole model"]
    assert percent(1e-9) == "1e-07%"


def test_a_network_of_many_layers_still_fits(tmp_path: Path) -> None:
    record = {**RECORD, "layers": [change(f"features.denseblock3.denselayer{k}", 100, k % 3, 0.01) for k in range(150)]}
    assert len(bars(str(layers_picture(record).svg), "#0072B2")) == 100
    empty = {**RECORD, "layers": [change("conv1", 10, 0)], "tensors": [], "changed": 0, "share": 0.0}
    assert "0% of 10" not in write_patch_page(empty, tmp_path / "p.html").read_text()
