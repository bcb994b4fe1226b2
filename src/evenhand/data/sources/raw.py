"""A raw download as it lies on disk: its tables and files found, or said what is missing, where it may be, and what to do."""

from __future__ import annotations

import difflib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from evenhand.data.sources.sheet import read_sheet
from evenhand.data.table import MISSING_WORDS
from evenhand.errors import InputError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar", ".gz")
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".npy", ".npz")


class RawFolder:
    """The folder that the provider's archive unpacks to.

    Args:
        root: the folder.
        layout: what it should hold, for the error texts.
    """

    def __init__(self, root: str | Path, layout: str = "") -> None:
        self.root = Path(root)
        self.layout = layout
        if not self.root.is_dir():
            packed = self.root.name.lower().endswith(ARCHIVES) and self.root.is_file()
            what = "an archive; unpack it" if packed else "not a folder"
            raise InputError(f"{self.root} is {what}; give the folder that the download was unpacked to")

    def has(self, name: str) -> bool:
        """Whether a file or folder of that name is there."""
        return (self.root / name).exists()

    def file(self, *names: str) -> Path:
        """The first of these relative paths that is a file.

        Raises:
            InputError: none is; it says which level or archive may hold it.
        """
        for name in names:
            if (self.root / name).is_file():
                return self.root / name
        raise self._absent("file", names)

    def folder(self, *names: str) -> Path:
        """The first of these relative paths that is a folder.

        Raises:
            InputError: none is.
        """
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        raise self._absent("folder", names)

    def table(
        self, *names: str, columns: Sequence[str], optional: Sequence[str] = (), separator: str = ",", encoding: str = "utf-8-sig"
    ) -> pd.DataFrame:
        """A table with every cell as text (missing where empty), its required columns there.

        Args:
            names: relative paths; the first that is there is read (CSV; ``.gz`` too; ``.xlsx`` and ``.parquet`` by their names).
            columns: columns that must be there.
            optional: columns that may be there; absent ones are added, all missing.
            separator: of the cells of a text file.
            encoding: of a text file.

        Raises:
            InputError: no such file, not a table, no rows, or a column is absent (the nearest name is offered).
        """
        path = self.file(*names)
        try:
            frame = _read(path, separator, encoding)
        except PermissionError as error:
            raise _no_right(error) from error
        except (ValueError, OSError, EOFError, RuntimeError, zlib.error, pd.errors.ParserError) as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise InputError(f"{path} cannot be read as a table ({reason}); download it again") from error
        frame = frame.rename(columns=lambda name: str(name).strip())
        absent = [name for name in columns if name not in frame]
        if absent:
            raise InputError(_other_columns(path, absent, [str(name) for name in frame.columns if name not in (*columns, *optional)]))
        if not len(frame):
            raise InputError(f"{path} has no rows below its header; download it again")
        return frame.assign(**{name: pd.Series(pd.NA, index=frame.index, dtype="string") for name in optional if name not in frame})

    def lines(self, *names: str) -> list[str]:
        """The lines of a text file that are not empty, without outer spaces; the first of these paths that is a file.

        Raises:
            InputError: no such file, or it is not text in UTF-8.
        """
        path = self.file(*names)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except PermissionError as error:
            raise _no_right(error) from error
        except (ValueError, OSError) as error:
            raise InputError(f"{path} cannot be read as text ({str(error).splitlines()[0]}); download it again") from error
        return [line.strip() for line in text.splitlines() if line.strip()]

    def walk(self, folder: str = ".", suffixes: Sequence[str] = IMAGES) -> list[str]:
        """Sorted POSIX paths, relative to the root, of the files under a folder whose names end so (case does not matter).

        Links to folders are followed, unless they lead back to where the walk has come from.
        """
        found = []
        ends = tuple(suffixes)
        for place, folders, files in walk_links(self.root / folder):
            folders[:] = [name for name in folders if name != "__MACOSX"]
            base = os.path.relpath(place, self.root).replace(os.sep, "/")
            prefix = "" if base == "." else base + "/"
            found += [prefix + name for name in files if name.lower().endswith(ends) and not name.startswith("._")]
        return sorted(found)

    def by_stem(self, folders: Iterable[str], suffixes: Sequence[str] = IMAGES) -> dict[str, str]:
        """File name without its ending -> path relative to the root, of all files under some folders (those that exist)."""
        found: dict[str, str] = {}
        for folder in folders:
            if (self.root / folder).is_dir():
                for path in self.walk(folder, suffixes):
                    found.setdefault(os.path.splitext(os.path.basename(path))[0], path)
        return found

    def _absent(self, what: str, names: Sequence[str]) -> InputError:
        # places are many for some sets; the layout in the details has them all
        short = names if len(names) < 4 else tuple(dict.fromkeys(name.rpartition("/")[2] for name in names))
        wanted = " or ".join(f"'{name}'" for name in short)
        where = "" if short == tuple(names) or self.layout == "" else ", also not in the folders named below"
        return InputError(f"{self.root} has no {what} {wanted}{where}; {self._advice(names)}", self.layout.splitlines())

    def _advice(self, names: Sequence[str]) -> str:
        for parent in (self.root.parent, self.root.parent.parent):
            if any((parent / name).exists() for name in names):
                return f"{parent} has it: give that folder"
        inside = sorted(path for path in self.root.iterdir())
        if not inside:
            return "it is empty"
        for path in inside:
            if path.is_dir() and any((path / name).exists() for name in names):
                return f"{path} has it: give that folder"
        packed = [path.name for path in inside if path.name.lower().endswith(ARCHIVES)]
        if packed:
            return f"it also holds archives that are not unpacked ({', '.join(packed[:5])}): unpack them in place"
        wrong = [name for name in names if (self.root / name).exists()]
        if wrong:
            return f"'{wrong[0]}' is a {'folder' if (self.root / wrong[0]).is_dir() else 'file'} there: unpack the download again"
        near = difflib.get_close_matches(Path(names[0]).name, [path.name for path in inside], n=1)
        holds = f"the nearest name there is '{near[0]}'" if near else f"it holds {', '.join(path.name for path in inside[:5])}"
        more = f", … ({len(inside):,} in all)" if not near and len(inside) > 5 else ""
        return f"{holds}{more}; download what is missing, or compare with what is read"


def walk_links(top: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, also into folders that are links; but not into those that hold, or are, a folder that the walk is in.

    Raises:
        InputError: a folder may not be read.
    """
    # place -> real paths of the folders from which links were followed, and of the place itself
    been: dict[str, tuple[str, ...]] = {os.fspath(top): (os.path.realpath(top),)}
    for place, folders, files in os.walk(top, onerror=_refuse, followlinks=True):
        chain = been.pop(place)
        for name in list(folders):
            path = os.path.join(place, name)
            if not os.path.islink(path):
                been[path] = (*chain[:-1], os.path.join(chain[-1], name))
                continue
            real = os.path.realpath(path)
            if any(os.path.join(former, "").startswith(os.path.join(real, "")) for former in chain):
                folders.remove(name)
            else:
                been[path] = (*chain, real)
        yield place, folders, files


def _other_columns(path: Path, absent: Sequence[str], spare: Sequence[str]) -> str:
    """What is said of a table without some columns: the nearest of those that are not known, and all of these once."""
    near = {name: difflib.get_close_matches(name, spare, n=1) for name in absent}
    words = "; ".join(f"'{name}' is absent" + (f", did you mean '{found[0]}'?" if found else "") for name, found in near.items())
    some = ", ".join(name[:60] for name in spare[:12]) + (f", … ({len(spare):,} in all)" if len(spare) > 12 else "")
    others = "" if all(near.values()) else f"; the columns that are not known: {some or 'none'}"
    stop = "" if words.endswith("?") and not others else "."
    return (
        f"{path} has other columns than this release of the set: {words}{others}{stop} Is it the file of this data set? "
        "If its provider has renamed a column, name it as before in a copy of the file"
    )


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed is an error, and not an empty folder."""
    if not isinstance(error, FileNotFoundError):
        raise _no_right(error)


def _no_right(error: OSError) -> InputError:
    return InputError(f"{error.filename} cannot be read ({(error.strerror or str(error)).lower()}); give yourself the right to read it")


def _read(path: Path, separator: str, encoding: str) -> pd.DataFrame:
    lower = path.name.lower()
    if lower.endswith((".xlsx", ".xls")):
        frame = read_sheet(path)
        frame = frame.mask(frame.isin(MISSING_WORDS))
    elif lower.endswith(".parquet"):
        frame = pd.read_parquet(path)
        frame = frame.astype(dict.fromkeys(frame.columns, "string"))
    else:
        frame = pd.read_csv(
            path, sep=separator, dtype="str", keep_default_na=False, na_values=list(MISSING_WORDS), encoding=encoding, low_memory=False
        )
    return frame


def recode(values: pd.Series, names: Mapping[str, str]) -> pd.Series:
    """Words -> names of groups, without regard to case and outer spaces; every other word is missing.

    Example:
        >>> recode(pd.Series(["F", " male ", "Unknown", None]), {"f": "female", "male": "male"}).tolist()
        ['female', 'male', <NA>, <NA>]
    """
    return values.astype("string").str.strip().str.lower().map({key.lower(): value for key, value in names.items()}).astype("string")
