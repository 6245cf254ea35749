"""Results as files: CSV, JSON, JSON lines, Parquet; streamed."""

import csv
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from flows.terminal import json_text, visible

if TYPE_CHECKING:
    from db.store import Run, Store

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001 - full-width ones work as well
"""What a spreadsheet takes for the beginning of a formula, or of what we have made of one."""
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)


class WritingError(Exception):
    """Results that cannot be written as asked."""


class Format(StrEnum):
    """How results are written."""

    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"


def defused(cell: str) -> str:
    """A cell of a sheet that no spreadsheet takes for a formula: with an apostrophe before it."""
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def as_it_was(cell: str) -> str:
    """A cell that `defused` has made, or has left alone."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def results_of(
    store: "Store",
    run: "Run",
    *,
    verdict: str | None,
    limit: int | None,
    columns: list[str] | None,
) -> Iterator[dict[str, Any]]:
    """A line a candidate: ours first, then columns of the input, the same ones in every line.

    Args:
        store: the database.
        run: the run.
        verdict: only these.
        limit: only so many.
        columns: of the input; all by default.

    Raises:
        StoreError: the input has no such column.
    """
    wanted = columns
    if columns is None or columns:
        known = store.results.field_names(run.id)
        wanted = known if columns is None else columns
        if unknown := [name for name in wanted if name not in known]:
            from db.errors import StoreError

            raise StoreError(
                f"the input of run '{run.key}' has no column '{unknown[0]}'; it has "
                f"{', '.join(known)}"
            )
    rows = store.results.all(run.id, verdict=verdict, limit=limit, fields=bool(wanted))
    return _with_columns(rows, wanted or [])


def names_of(store: "Store", run: "Run") -> list[str]:
    """The columns of a run's results, whether there is one or not."""
    tiers = [
        f"{row.tier}_{name}"
        for row in store.results.funnel(run.id)
        for name in ("score", "reading")
    ]
    ours = ["key", "verdict", "tier", "score", "why", *tiers]
    return [*ours, *_distinct(store.results.field_names(run.id), ours).values()]


def _with_columns(rows: Iterator[dict[str, Any]], columns: list[str]) -> Iterator[dict[str, Any]]:
    names: dict[str, str] = {}
    for row in rows:
        fields = row.pop("fields", {})
        names = names or _distinct(columns, list(row))
        yield row | {name: fields.get(column) for column, name in names.items()}


def _distinct(columns: list[str], ours: list[str]) -> dict[str, str]:
    """Columns of the input and their names beside ours, apart in capitals as well.

    Parquet and spreadsheets take `Score` and `score` for one.
    """
    taken = {name.lower() for name in ours}
    names: dict[str, str] = {}
    for column in columns:
        name = column
        while name.lower() in taken:
            name = f"input_{name}"
        taken.add(name.lower())
        names[column] = name
    return names


def write_results(
    rows: Iterator[dict[str, Any]],
    output: Path | None,
    format_: Format,
    *,
    raw: bool = False,
    names: Sequence[str] = (),
) -> None:
    """Stream results to a file or to stdout.

    Args:
        rows: as `results_of` gives them.
        output: a file; stdout by default.
        format_: how they are written.
        raw: leave cells of a CSV that a spreadsheet takes for formulas as they are.
        names: of the columns, for a file without a row.
    """
    # The first is read before a file is emptied that would then have nothing in it.
    rows = chain(list(islice(rows, 1)), rows)
    if format_ is Format.PARQUET:
        if output is None:
            raise WritingError(
                "Parquet cannot be written to a terminal; give --output FILE.parquet"
            )
        _write_parquet(rows, output, names)
        return
    stream = sys.stdout if output is None else output.open("w", newline="", encoding="utf-8")
    try:
        match format_:
            case Format.JSONL:
                stream.writelines(f"{json_text(row)}\n" for row in rows)
            case Format.JSON:
                _write_array(rows, stream)
            case _:
                _write_csv(rows, stream, names, raw=raw)
    finally:
        if output is not None:
            stream.close()


def _write_array(rows: Iterable[dict[str, Any]], stream: Any) -> None:
    before = "[\n"
    for row in rows:
        stream.write(before + json_text(row))
        before = ",\n"
    stream.write("[]\n" if before == "[\n" else "\n]\n")


def _write_csv(
    rows: Iterable[dict[str, Any]], stream: Any, names: Sequence[str], *, raw: bool
) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    seen = stream.isatty()

    def cell(value: Any) -> Any:
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        text = value if isinstance(value, str) else json_text(value)
        text = text if raw else defused(text)
        return visible(text) if seen else text

    begun = False
    for row in rows:
        if not begun:
            writer.writerow(map(cell, row))
            begun = True
        writer.writerow(map(cell, row.values()))
    if not begun and names:
        writer.writerow(map(cell, names))


def _write_parquet(rows: Iterator[dict[str, Any]], output: Path, names: Sequence[str]) -> None:
    """Our scores as numbers, all else as text: a column of the input may hold anything."""
    import duckdb

    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl") as lines:
        longest, scores = 0, set[str]()
        for row in rows:
            if not longest:
                scores = {name for name in row if name == "score" or name.endswith("_score")}
            scores = {name for name in scores if isinstance(row[name], float | None)}
            longest = max(longest, lines.write(orjson.dumps(row) + b"\n"))
        lines.flush()
        if not longest:
            row = dict.fromkeys(names or ("key", "verdict", "tier", "score", "why"))
            scores = {name for name in row if name == "score" or name.endswith("_score")}
        kinds = ", ".join(
            f"{_quoted(name)}: '{'DOUBLE' if name in scores else 'VARCHAR'}'" for name in row
        )
        duckdb.execute(
            "COPY (SELECT * FROM read_json(?, format='newline_delimited', records=true, "  # noqa: S608
            f"maximum_object_size={max(longest, 1 << 24)}, columns={{{kinds}}})) "
            f"TO {_quoted(str(output))} (FORMAT parquet)",
            [lines.name],
        )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def format_of(output: Path | None) -> Format:
    """The format that a file's name asks for; CSV for stdout."""
    if output is None:
        return Format.CSV
    suffix = output.suffix.lower().lstrip(".")
    found = {**{each.value: each for each in Format}, "ndjson": Format.JSONL}.get(suffix)
    if found is None:
        advice = "; a spreadsheet opens a .csv" if suffix in ("xlsx", "xls", "ods") else ""
        raise WritingError(
            f"{output}: results are written as .csv, .json, .jsonl or .parquet{advice}; write "
            f"--output {output.stem or 'results'}.csv, or name one of these with --format"
        )
    return found
