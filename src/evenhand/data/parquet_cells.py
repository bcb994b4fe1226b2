"""Encoded images in a column of a parquet file: bytes, or Hugging Face's struct of bytes and path.

A file is read a row group at a time, and the last group is kept for the next rows of a table. Many writers make one group of the whole
file; such a file is written anew in small groups while a cache is being built (`evenhand.data.unpacking`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from evenhand.errors import ImageError, nearest

_GROUP = 1 << 24
"""Bytes of a row group in a file that is written anew; a group has one row at least."""


def read_cell(path: str, mark: tuple[int, int], column: str, row: int) -> bytes:
    """The encoded image of one row.

    Args:
        path: the file.
        mark: size and time of change, so that nothing is kept of a file that has changed.
        column: with the images.
        row: from 0.

    Raises:
        ImageError: no such row or column, or no image there.
    """
    starts = _row_groups(path, mark, column)
    if row >= starts[-1]:
        raise ImageError(f"row {row} is out of range, the parquet file has {starts[-1]} rows")
    group = bisect_right(starts, row) - 1
    cell = _row_group(path, mark, column, group)[row - starts[group]].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(cell, dict) and data is None and cell.get("path"):
        beside = Path(path).parent / cell["path"]
        if not beside.is_file():
            raise ImageError(f"row {row} of the parquet file holds only a file name, and that file is not beside it")
        data = beside.read_bytes()
    if data is not None and not isinstance(data, bytes):
        raise ImageError(f"column '{column}' of the parquet file holds {type(data).__name__}, but must hold encoded images (bytes)")
    if not data:
        raise ImageError(f"row {row} of the parquet file holds no image in column '{column}'")
    return data


def forget() -> None:
    """Let go of what was kept of the last file."""
    _row_groups.cache_clear()
    _row_group.cache_clear()


@lru_cache(maxsize=8)
def _row_groups(path: str, mark: tuple[int, int], column: str) -> tuple[int, ...]:
    """First row of every row group, and the number of rows."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _check_column(file, column)
        counts = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
    return tuple(accumulate(counts, initial=0))


@lru_cache(maxsize=1)
def _row_group(path: str, mark: tuple[int, int], column: str, group: int) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def _check_column(file: Any, column: str) -> None:
    names = list(file.schema_arrow.names)
    if column not in names:
        raise ImageError(f"the parquet file has no column '{column}'; {nearest(column, names)}")


def _leaves(file: Any, column: str) -> list[list[Any]]:
    """Of every row group, what the file says of the stored columns that a column consists of."""
    groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    leaves = [[group.column(k) for k in range(group.num_columns)] for group in groups]
    return [[leaf for leaf in group if f"{leaf.path_in_schema}.".startswith(f"{column}.")] for group in leaves]


def column_bytes(path: str, column: str) -> tuple[int, int]:
    """What a column takes once it is unpacked: its largest row group, and all of them.

    Raises:
        ImageError: no such column.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _check_column(file, column)
        sizes = [sum(leaf.total_uncompressed_size for leaf in group) for group in _leaves(file, column)]
    return max(sizes, default=0), sum(sizes)


def write_small_groups(path: str, column: str, out: BinaryIO, advance: Callable[[int], None]) -> None:
    """Write one column anew in small row groups, without holding a large one; names of files beside the old one become whole paths.

    Args:
        path: the file.
        column: the one that is wanted.
        out: the new file.
        advance: told the bytes of every group that is written.
    """
    from pyarrow import parquet

    # without these two, the library reads all of a group's column before it gives the first row
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        rows = max(1, file.metadata.num_rows)
        step = max(1, _GROUP * rows // max(1, column_bytes(path, column)[1]))
        field = file.schema_arrow.field(column)
        schema = file.schema_arrow.empty_table().select([column]).schema.remove_metadata()
        with parquet.ParquetWriter(out, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
            for batch in file.iter_batches(batch_size=min(step, 1024), columns=[column]):
                writer.write_batch(_with_whole_paths(batch, field, Path(path).resolve().parent).cast(schema))
                advance(batch.nbytes)


def _with_whole_paths(batch: Any, field: Any, folder: Path) -> Any:
    import pyarrow as pa

    cells = batch.column(0)
    if not _has_paths(field) or not cells.field("bytes").null_count:
        return batch
    found = [
        {**cell, "path": str(folder / cell["path"])} if cell and cell["bytes"] is None and cell["path"] else cell
        for cell in cells.to_pylist()
    ]
    return pa.record_batch([pa.array(found, field.type)], names=[field.name])


def _has_paths(field: Any) -> bool:
    """Whether a column is a struct of bytes and path."""
    import pyarrow as pa

    return pa.types.is_struct(field.type) and {"bytes", "path"} <= {part.name for part in field.type}


def files_beside(path: str) -> list[str]:
    """Image files that a parquet file only names, in its order; empty where every image lies in the file itself."""
    from pyarrow import parquet

    found: list[str] = []
    with parquet.ParquetFile(path) as file:
        for field in file.schema_arrow:
            if _names_files(file, field):
                for batch in file.iter_batches(batch_size=1 << 16, columns=[f"{field.name}.path"]):
                    found += [cell["path"] for cell in batch.column(0).to_pylist() if cell and cell["path"]]
    beside = (str(Path(path).parent / name) for name in dict.fromkeys(found))
    return [name for name in beside if Path(name).is_file()]


def _names_files(file: Any, field: Any) -> bool:
    """Whether some cells of a column have a path and no bytes, as far as the file tells without being read."""
    if not _has_paths(field):
        return False
    leaves = [leaf for group in _leaves(file, field.name) for leaf in group if leaf.path_in_schema == f"{field.name}.bytes"]
    return any(leaf.statistics is None or not leaf.statistics.has_null_count or leaf.statistics.null_count > 0 for leaf in leaves)
