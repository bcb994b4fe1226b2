"""`evenhand prepare`: a table and a folder of images become a checked, decode-once prepared data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evenhand.errors import InputError

SOURCES = ("csv",)


def prepare_command(
    source: Annotated[str, typer.Argument(help="Where the data comes from: csv (your own table and images).", metavar="SOURCE")],
    table: Annotated[Path, typer.Argument(help="CSV, TSV or parquet, one row an image.", metavar="TABLE")],
    out: Annotated[Path, typer.Argument(help="Folder to write; new, empty, or from the same command.", metavar="OUT")],
    images: Annotated[Path, typer.Option(help="Folder that the table's image paths are relative to.", metavar="DIR")],
    label: Annotated[list[str], typer.Option("--label", "--labels", help="Label column, 0/1 or class names; repeat, or use commas.")],
    attributes: Annotated[list[str], typer.Option(help="Sensitive attributes, joint ones as sex*age; repeat, or use commas.")] = [],  # noqa: B006
    bins: Annotated[list[str], typer.Option(help="Edges of half-open bins of a number, as age=0,60,200. Repeat for more.")] = [],  # noqa: B006
    missing: Annotated[str, typer.Option(help="Rows with a missing attribute: own_group (shown apart), drop, error.")] = "own_group",
    size: Annotated[int, typer.Option(help="Side of the stored images, in pixels.")] = 224,
    resize: Annotated[str, typer.Option(help="crop (short side, then centre), pad or stretch.")] = "crop",
    kind: Annotated[str, typer.Option(help="binary, multiclass or multilabel; default: told from the labels.", show_default=False)] = "",
    modality: Annotated[str, typer.Option(help="chest_film, dermoscopy, photograph or fundus.")] = "photograph",
    channels: Annotated[int, typer.Option(help="1 or 3; 0: 1 where every image is grey, else 3.")] = 0,
    fractions: Annotated[str, typer.Option(help="Shares of train, val and test, where the table has no split column.")] = "0.7,0.1,0.2",
    image_column: Annotated[str, typer.Option(help="Column of image paths.")] = "image",
    patient_column: Annotated[str, typer.Option(help="Column of patient ids; absent: every image is its own patient.")] = "patient_id",
    split_column: Annotated[str, typer.Option(help="Column of splits (train, val, test); absent: split by patient.")] = "split",
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Leave unreadable images out (listed in excluded.csv).")] = False,
    max_groups: Annotated[int, typer.Option(help="Most groups one attribute may have, joint ones included.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the splits, where the table has none.")] = 0,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0: one a processor core.")] = 0,
) -> None:
    """Check a table, decode its images once, and write a prepared data set.

    The same command goes on after an interruption, and does nothing where the data set is finished.
    """
    if source not in SOURCES:
        raise InputError(f"source '{source}' is not known; known sources are: {', '.join(SOURCES)}")
    from evenhand.data.sources.csv import prepare_csv

    options: dict[str, Any] = {"resize": resize, "kind": kind or None}
    data = prepare_csv(
        table, out, images=images, labels=split_names(label), attributes=split_names(attributes), bins=parse_bins(bins),
        missing=missing, size=size, modality=modality, channels=channels or None, fractions=parse_numbers(fractions, "fractions"),
        columns=(image_column, patient_column, split_column), keep_going=keep_going, max_groups=max_groups, seed=seed,
        workers=workers or None, progress=True, **options,
    )
    _summarise(data)


def split_names(values: Sequence[str]) -> list[str]:
    """Repeated and comma-separated values as one list.

    Example:
        >>> split_names(["sex,age", "sex*age"])
        ['sex', 'age', 'sex*age']
    """
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def parse_bins(values: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """``age=0,60,200`` -> {"age": (0.0, 60.0, 200.0)}.

    Raises:
        InputError: not of that form.
    """
    bins: dict[str, tuple[float, ...]] = {}
    for value in values:
        name, equals, edges = value.partition("=")
        if not equals or not name.strip():
            raise InputError(f"bins are '{value}', but must be NAME=EDGE,EDGE,…, as age=0,60,200")
        if name.strip() in bins:
            raise InputError(f"bins of '{name.strip()}' are given twice; give them once, as age=0,60,200")
        bins[name.strip()] = parse_numbers(edges, f"bins of '{name.strip()}'")
    return bins


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """Comma-separated numbers.

    Raises:
        InputError: one of them is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{what} are '{text}', but must be numbers separated by commas") from None


def _summarise(data: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    channels, height, width = data.cache.shape
    console.print(f"{len(data)} images ({channels} x {height} x {width}, {data.cache.dtype}), kind {data.spec.kind}, in {data.root}")
    counts = data.description["counts"]
    grid = Table("split", "images", "patients", *list(next(iter(counts.values()))["positives"])[:8])
    for split, values in counts.items():
        grid.add_row(split, str(values["rows"]), str(values["patients"]), *map(str, list(values["positives"].values())[:8]))
    console.print(grid)
