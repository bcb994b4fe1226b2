"""What the source file of a public data set declares, and what it gives back: one row an image.

A source is a module of the folder ``public``, named as the user names the data set, with two names: ``INFO``, an `Info`, and
``read(raw, choice)``, which takes the raw download (a `evenhand.data.sources.raw.RawFolder`) and the user's `Choice` and returns
a `Found`. Everything after that (checks, splits, decoding, the table) is the same for every source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from evenhand.data.images import Resize
from evenhand.data.table import Kind

SplitRule = Literal["published", "patient"]


@dataclass(frozen=True)
class Task:
    """One definition of the labels.

    Attributes:
        name: how the user picks it, as ``no_finding``.
        labels: the label columns that the table gets; one for binary and multi-class. None at all: the user names columns of the
            table, and the kind is told from them.
        text: the definition, with who defined it so ("MEDFAIR", "the provider").
        kind: ``binary``, ``multiclass`` or ``multilabel``.
    """

    name: str
    labels: tuple[str, ...]
    text: str
    kind: Kind = "binary"


@dataclass(frozen=True)
class Attribute:
    """One definition of a sensitive attribute: a column of the table.

    Attributes:
        name: the column, as ``sex``, ``age60``, ``race`` or ``race_white``.
        text: the definition: values, edges, and who defined it so.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Option:
    """A choice that only this source has, as CheXpert's policy for uncertain labels.

    Attributes:
        name: its name.
        values: what it may be; the first is the default. None at all: any text, as a path; empty where it was not given.
        text: what each value does.
    """

    name: str
    values: tuple[str, ...]
    text: str

    @property
    def default(self) -> str:
        """What it is where nothing is said."""
        return self.values[0] if self.values else ""


@dataclass(frozen=True)
class Expected:
    """A count that the provider has published.

    Attributes:
        what: the key in `Found.counts`: ``images``, ``patients``, or words of the source's own.
        count: the published figure.
        origin: where it is published.
    """

    what: str
    count: int
    origin: str


@dataclass(frozen=True)
class Info:
    """All that is said about a public data set.

    Attributes:
        name: how the user names it.
        title: its full name.
        modality: one of `evenhand.data.datasets.MODALITIES`; picks the augmentation recipe.
        version: the release that the layout is of.
        verified: whether the layout was checked against a real download.
        layout: the provider's file layout, one path a line, with the columns that are read.
        documentation: addresses of the provider's description of layout and columns.
        tasks: label definitions; the first is the default.
        attributes: attribute definitions.
        default_attributes: the attributes of a plain command.
        split: what the published split is, or why there is none.
        splits: the rules that can be asked for; the first is the default.
        expected: counts that the provider has published.
        licence: its name or terms.
        link: where the data are asked for or downloaded.
        citation: the paper or data descriptor to cite.
        options: choices of this source only.
        size: side of the stored images in pixels.
        resize: how images come to that size.
        channels: 1 or 3; None: 1 where every image is grey.
        traps: what is odd about the set, and what is done about it.
        aliases: other names that are accepted.
        missing: policy for rows with a missing attribute.
    """

    name: str
    title: str
    modality: str
    version: str
    layout: str
    documentation: tuple[str, ...]
    tasks: tuple[Task, ...]
    attributes: tuple[Attribute, ...]
    default_attributes: tuple[str, ...]
    split: str
    licence: str
    link: str
    citation: str
    verified: bool = False
    splits: tuple[SplitRule, ...] = ("patient",)
    expected: tuple[Expected, ...] = ()
    options: tuple[Option, ...] = ()
    size: int = 224
    resize: Resize = "crop"
    channels: int | None = None
    traps: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    missing: str = "own_group"

    @property
    def own(self) -> bool:
        """Whether these are the user's own data, with labels that the user may name, and not a published set."""
        return any(not task.labels for task in self.tasks)


@dataclass(frozen=True)
class Choice:
    """What the user has asked a source for; every part is valid for it.

    Attributes:
        task: the label definition; its columns must be in `Found.frame`.
        split: ``published`` or ``patient``.
        options: option -> value, one for each of the source's options.
    """

    task: Task
    split: SplitRule
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Found:
    """What a source has made of a raw folder.

    Attributes:
        frame: one row an image, every cell text (or missing): ``image`` (a path relative to the raw folder, or a reference into a
            file, see `evenhand.data.references`), ``patient_id``, the label columns of the task, every attribute of the source, and
            any other columns worth keeping; where the published split was chosen, ``split``: train, val, test, or ``rest`` (train and
            val are then drawn from these rows by patient).
        counts: what was found, under the words of `Info.expected` (``images``, ``patients``, ...), before rows are left out.
        notes: what the user should know: whole sentences with numbers, without patient ids.
        left_out: rows that the definitions leave out (unlabelled, lateral view, ...), with a column ``reason``.
        modality: what the images are, where a source serves several kinds; None: as `Info.modality`.
    """

    frame: pd.DataFrame
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: pd.DataFrame | None = None
    modality: str | None = None

    def leave_out(self, rows: Any, reason: str) -> None:
        """Move the rows where the mask ``rows`` is true from the frame to ``left_out``."""
        gone = self.frame[rows].assign(reason=reason)
        if len(gone):
            self.left_out = gone if self.left_out is None else pd.concat([self.left_out, gone], ignore_index=True)
            self.frame = self.frame[~rows].reset_index(drop=True)
