"""Parquet files whose columns are taken out by kind and checked; what is wrong is told by file and column."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flowray.errors import ConfigError
from flowray.routing.estimates import Floats


class SchemaError(ConfigError):
    """A directory does not follow the schema of outcome sets. `file` and `column` say where, `hint` the way out."""

    def __init__(self, file: str, column: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{file}, column {column!r}" if column else file, problem, hint)
        self.args = (file, column, problem, hint)
        self.file, self.column = file, column


class ParquetTable:
    """One Parquet file, whose columns are taken out by kind and checked."""

    def __init__(self, file: Path, table: pa.Table) -> None:
        self.file, self._table = file, table

    @classmethod
    def read(cls, file: Path) -> ParquetTable | None:
        """The file, None where there is none."""
        if not file.is_file():
            return None
        try:
            return cls(file, pq.read_table(file))
        except (pa.ArrowException, OSError) as error:
            raise SchemaError(str(file), "", f"cannot be read as Parquet: {error}", "write it again") from error

    def __contains__(self, column: str) -> bool:
        return column in self._table.column_names

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def error(self, column: str, problem: str, hint: str = "") -> SchemaError:
        return SchemaError(str(self.file), column, problem, hint)

    def column(self, column: str, kind: pa.DataType) -> Any:
        """One column as an Arrow array of a kind."""
        if column not in self:
            there = ", ".join(self._table.column_names)
            raise self.error(column, "is missing", f"add it; the file has {there}")
        values = self._table.column(column).combine_chunks()
        try:
            return pc.cast(
                pc.cast(values, values.type.value_type) if pa.types.is_dictionary(values.type) else values, kind
            )
        except (pa.ArrowException, NotImplementedError) as error:
            raise self.error(column, f"cannot be read as {kind}: {error}", f"store it as {kind}") from error

    def words(self, column: str, *, required: bool = False) -> tuple[str, ...]:
        """A column of text; null is "" where it may be."""
        values = self.column(column, pa.string())
        if required and values.null_count:
            raise self.error(
                column, f"is null in {values.null_count} of {len(values)} rows", "fill it or drop the rows"
            )
        return tuple(values.fill_null("").to_pylist())

    def key(self, column: str) -> tuple[str, ...]:
        """A column of text that names each row."""
        values = self.words(column, required=True)
        if len(set(values)) < len(values):
            twice = Counter(values).most_common(1)[0][0]
            raise self.error(column, f"{twice!r} is in two rows", "keep one row of each")
        return values

    def numbers(self, column: str, low: float = -np.inf, high: float = np.inf) -> Floats:
        """A column of numbers within bounds; null is NaN. A column that is not there is all NaN."""
        if column not in self:
            return np.full(len(self), np.nan, np.float32)
        values: Floats = np.asarray(self.column(column, pa.float64()).to_numpy(zero_copy_only=False), np.float32)
        wrong = (values < low) | (values > high) | np.isinf(values)
        if wrong.any():
            row = int(wrong.argmax())
            raise self.error(
                column,
                f"row {row} holds {values[row]:g}, outside {low:g} to {high:g}",
                "correct it, or store null where it is unknown",
            )
        return values

    def places(self, column: str, ids: tuple[str, ...], where: str) -> npt.NDArray[np.intp]:
        """The position among `ids`, which are those of the file `where`, of each row's value."""
        values = self.column(column, pa.string())
        places = pc.index_in(values, value_set=pa.array(ids, pa.string()))
        if places.null_count:
            unknown = values.filter(pc.is_null(places))[0].as_py()
            raise self.error(column, f"{unknown!r} is not in {where}", "add it there, or drop its rows here")
        return np.asarray(places.to_numpy(zero_copy_only=False), dtype=np.intp)
