"""Results as files: CSV, JSON lines, Parquet; streamed."""

import csv
import sys
import tempfile
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from flows.console import fail


class Format(StrEnum):
    """How results are written."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def write_results(rows: Iterator[dict[str, Any]], output: Path | None, format_: Format) -> None:
    """Stream results to a file or to stdout."""
    if format_ is Format.PARQUET:
        if output is None:
            fail("Parquet cannot be written to a terminal; give --output FILE.parquet")
        _write_parquet(rows, output)
        return
    stream = sys.stdout if output is None else output.open("w", newline="", encoding="utf-8")
    try:
        if format_ is Format.JSONL:
            stream.writelines(orjson.dumps(row).decode() + "\n" for row in rows)
        else:
            _write_csv(rows, stream)
    finally:
        if output is not None:
            stream.close()


def _write_csv(rows: Iterable[dict[str, Any]], stream: Any) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow(row.values())


def _write_parquet(rows: Iterator[dict[str, Any]], output: Path) -> None:
    import duckdb

    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl") as lines:
        count = 0
        for row in rows:
            lines.write(orjson.dumps(row) + b"\n")
            count += 1
        lines.flush()
        if not count:
            fail("no results to write")
        types = {
            name: "DOUBLE" if name == "score" or name.endswith("_score") else "VARCHAR"
            for name in row
        }
        target = str(output).replace("'", "''")
        duckdb.execute(
            f"COPY (SELECT * FROM read_json(?, format='newline_delimited', columns={types!r})) "  # noqa: S608
            f"TO '{target}' (FORMAT parquet)",
            [lines.name],
        )


def format_of(output: Path | None) -> Format:
    """The format that a file's name asks for; CSV where it asks for none."""
    suffix = output.suffix.lstrip(".").lower() if output else ""
    return Format(suffix) if suffix in set(Format) else Format.CSV
