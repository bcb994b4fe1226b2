"""`evenhand prepare`: a public data set's download, or an own table and images, become a checked, decode-once prepared data set."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from evenhand.errors import InputError

OWN = ("images", "image_column", "patient_column", "split_column")
PUBLIC = ("task", "split", "option")
SHARED = ("missing", "size", "resize", "kind", "modality", "max_groups")
_public = partial(typer.Option, rich_help_panel="Public data sets", show_default=False)
_own = partial(typer.Option, rich_help_panel="Your own table (csv)", show_default=False)


def prepare_command(
    source: Annotated[
        Optional[str], typer.Argument(help="A public data set (see --list), or csv: your own table and images.", metavar="SOURCE")
    ] = None,
    raw: Annotated[
        Optional[Path],
        typer.Argument(help="The unpacked download; for csv the table: CSV, TSV or parquet, one row an image.", metavar="RAW"),
    ] = None,
    out: Annotated[Optional[Path], typer.Argument(help="Folder to write; new, empty, or from the same command.", metavar="OUT")] = None,
    list_: Annotated[bool, _public("--list", help="Show the public data sets.")] = False,
    describe: Annotated[str, _public(help="Show all about one of them.", metavar="NAME")] = "",
    task: Annotated[str, _public(help="Label definition; default: the set's first.")] = "",
    label: Annotated[
        list[str], typer.Option("--label", "--labels", help="Label columns (csv: 0/1 or class names); repeat, or use commas.")
    ] = [],  # noqa: B006
    attributes: Annotated[list[str], typer.Option(help="Sensitive attributes, joint ones as sex*age; repeat, or use commas.")] = [],  # noqa: B006
    split: Annotated[str, _public(help="published or patient; default: the set's first.")] = "",
    option: Annotated[list[str], _public(help="A choice that only this set has, as uncertain=ones. Repeat for more.")] = [],  # noqa: B006
    bins: Annotated[list[str], typer.Option(help="Edges of half-open bins of a number, as age=0,60,200. Repeat for more.")] = [],  # noqa: B006
    missing: Annotated[
        str, typer.Option(help="Rows with a missing attribute: own_group (shown apart; default), drop, error.", show_default=False)
    ] = "",
    size: Annotated[
        Optional[int], typer.Option(help="Side of the stored images, in pixels; default: 224, or the set's.", show_default=False)
    ] = None,
    resize: Annotated[str, typer.Option(help="crop (short side, then centre; default), pad or stretch.", show_default=False)] = "",
    channels: Annotated[int, typer.Option(help="1 or 3; 0: the set's, or 1 where every image is grey, else 3.")] = 0,
    dicom_window: Annotated[
        str, typer.Option(help="DICOM: number of a window of the header, from 0, or CENTRE,WIDTH; default: the first.", show_default=False)
    ] = "",
    fractions: Annotated[str, typer.Option(help="Shares of train, val and test, where no split is published.")] = "0.7,0.1,0.2",
    images: Annotated[Optional[Path], _own(help="Folder that the table's image paths are relative to.", metavar="DIR")] = None,
    kind: Annotated[str, typer.Option(help="Of own labels: binary, multiclass or multilabel; default: told.", show_default=False)] = "",
    modality: Annotated[
        str, typer.Option(help="What the images are (picks augmentation recipes); default: photograph, or the set's.", show_default=False)
    ] = "",
    image_column: Annotated[str, _own(help="Column of image paths; default: image.")] = "",
    patient_column: Annotated[str, _own(help="Column of patient ids; default: patient_id.")] = "",
    split_column: Annotated[str, _own(help="Column of splits (train, val, test); default: split.")] = "",
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Leave images that cannot be read out (see excluded.csv).")] = False,
    max_groups: Annotated[Optional[int], typer.Option(help="Most groups one attribute may have; default: 50.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the splits, where none is published.")] = 0,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0: one a processor core.")] = 0,
    several: Annotated[
        bool, typer.Option("--shared", help="Share the work with every machine that runs the same command on the same folder OUT.")
    ] = False,
) -> None:
    """Check a data set, decode its images once, and write a prepared data set.

    The same command goes on after an interruption, and does nothing where the data set is finished.

    Examples: evenhand prepare nih CXR8 prepared/nih --attributes sex,age60

    evenhand prepare csv table.csv prepared/own --images photos --label malignant --attributes sex
    """
    given = dict(locals())
    if list_ or describe:
        _show(describe)
        return
    source, raw, out = _required(source, raw, out)
    shared: dict[str, Any] = {
        "bins": parse_bins(bins), "channels": channels or None, "fractions": parse_numbers(fractions, "fractions"),
        "keep_going": keep_going, "seed": seed, "workers": workers or None, "progress": True, "shared": several,
        "dicom_window": dicom_window or None,
    }
    own = source == "csv"
    _summarise(_prepare_own(raw, out, given, shared) if own else _prepare_public(source, raw, out, given, shared))


def _required(source: str | None, raw: Path | None, out: Path | None) -> tuple[str, Path, Path]:
    if source is None:
        raise InputError("no source was given; evenhand prepare --list shows the public data sets, csv is your own table and images")
    if raw is None or out is None:
        first = "TABLE" if source == "csv" else "RAW_FOLDER"
        raise InputError(f"give what to read and the folder to write: evenhand prepare {source} {first} OUT")
    return source, raw, out


def _prepare_own(table: Path, out: Path, given: dict[str, Any], shared: dict[str, Any]) -> Any:
    """The source csv: only what was typed is passed on, so that the function's defaults hold."""
    _refuse(given, PUBLIC, "is of public data sets; a table has its own labels and splits in columns")
    if given["images"] is None or not given["label"]:
        raise InputError("the source csv needs --images DIR (the folder that image paths are relative to) and --label COLUMN")
    from evenhand.data.sources.csv import CANONICAL, prepare_csv

    columns = [given[name] or usual for name, usual in zip(("image_column", "patient_column", "split_column"), CANONICAL, strict=True)]
    typed = {name: given[name] for name in SHARED if given[name] not in (None, "")}
    return prepare_csv(
        table, out, images=given["images"], labels=split_names(given["label"]), attributes=split_names(given["attributes"]),
        columns=columns, **typed, **shared,
    )


def _prepare_public(name: str, raw: Path, out: Path, given: dict[str, Any], shared: dict[str, Any]) -> Any:
    """A public data set: only what was typed is passed on, so that the set's own defaults hold."""
    from evenhand.data.sources.registry import find_source

    find_source(name)
    _refuse(given, OWN, "is of the source csv; a public data set brings it itself")
    from evenhand.data.sources.prepare import prepare_source

    typed = {name: given[name] for name in ("task", "split", *SHARED) if given[name] not in (None, "")}
    lists = {"labels": split_names(given["label"]), "attributes": split_names(given["attributes"])}
    typed |= {name: values for name, values in lists.items() if values}
    return prepare_source(name, raw, out, options=parse_options(given["option"]), **typed, **shared)


def _refuse(given: dict[str, Any], names: Sequence[str], why: str) -> None:
    for name in names:
        if given[name]:
            raise InputError(f"--{name.replace('_', '-')} {why}")


def _show(describe: str) -> None:
    """All about one public data set as plain text, or the list of all of them."""
    import shutil
    import textwrap

    from evenhand.data.sources.describe import describe_source, list_text
    from evenhand.data.sources.registry import list_sources

    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    if describe:
        typer.echo(describe_source(describe, width=width), nl=False)
        return
    typer.echo(list_text(list_sources(), width))
    lines = ("verified: the layout was checked against a real download, not only against the provider's documentation",
             "all about one of them: evenhand prepare --describe NAME")
    typer.echo("\n".join(part for line in lines for part in textwrap.wrap(line, width)))


def parse_options(values: Sequence[str]) -> dict[str, str]:
    """``uncertain=ones`` -> {"uncertain": "ones"}.

    Raises:
        InputError: not of that form, or one is given twice.
    """
    options: dict[str, str] = {}
    for value in values:
        name, equals, choice = (part.strip() for part in value.partition("="))
        if not equals or not name or not choice:
            raise InputError(f"option is '{value}', but must be NAME=VALUE, as uncertain=ones")
        if name in options:
            raise InputError(f"option {name} is given twice; give it once")
        options[name] = choice
    return options


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
    console.print(f"look at it before training: evenhand card {shlex.quote(str(data.root))}")
