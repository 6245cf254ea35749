"""Rows of input into candidates of a run, a chunk at a time, set by set."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select, text, true, update

from db.bulk import (
    Noun,
    Staging,
    add_missing,
    checkpoint_after,
    fresh_statistics,
    in_order,
    stage,
    storable,
    uncollected,
)
from db.errors import InputRefused, StoreError
from db.models import BadRowRow, RunRow
from db.records import Beside, beside

_RAW_LIMIT = 2000
TEXT_DIGEST = 16
"""Bytes."""
_PAGES = 4_000
"""128 MB of SQLite's log before it is copied into the file, while rows are read: a power cut may
undo what is in the log, and rows can be read again. Answers were paid, so they keep the usual."""
_PAGES_ELSE = 1_000

_STAGED = Staging(
    "staged_row", {"key": "text", "digest": "bytea", "text_digest": "bytea", "problem": "text"}
)
_TEXT = {"digest": "bytea", "body": "text"}
_FIELDS = {"candidate_id": "int8", "fields": "text", "from_text": "text"}

# From the chunk, by index, to what it meets.
_CONFLICTS = in_order("""
    SELECT staged_row.key
    FROM staged_row
    CROSS JOIN candidate
      ON candidate.screen = :screen
      AND candidate.key = staged_row.key
      AND candidate.digest <> staged_row.digest
    CROSS JOIN verdict
      ON verdict.run_id = :run_id
      AND verdict.candidate_id = candidate.id
      AND verdict.ingest = :ingest
""")
_DROP_CONFLICT = text("DELETE FROM staged_row WHERE key = :key")
_KNOWN = in_order("""
    SELECT staged_row.key
    FROM staged_row
    CROSS JOIN candidate
      ON candidate.screen = :screen
      AND candidate.key = staged_row.key
      AND candidate.digest = staged_row.digest
""")
_CHANGED = in_order("""
    SELECT COUNT(DISTINCT staged_row.key)
    FROM staged_row
    CROSS JOIN candidate
      ON candidate.screen = :screen
      AND candidate.key = staged_row.key
    LEFT JOIN candidate AS same
      ON same.screen = :screen
      AND same.key = staged_row.key
      AND same.digest = staged_row.digest
    WHERE same.id IS NULL
""")
_ADD_CANDIDATES = in_order("""
    INSERT INTO candidate (screen, key, digest, text_id, problem)
    SELECT :screen, staged_row.key, staged_row.digest, text.id, staged_row.problem
    FROM staged_row
    LEFT JOIN text ON text.digest = staged_row.text_digest
    WHERE true
    ON CONFLICT (screen, key, digest) DO NOTHING
    RETURNING id, key
""")
_MET_BEFORE = in_order("""
    SELECT COUNT(*)
    FROM staged_row
    CROSS JOIN candidate
      ON candidate.screen = :screen
      AND candidate.key = staged_row.key
      AND candidate.digest = staged_row.digest
    CROSS JOIN verdict
      ON verdict.run_id = :run_id
      AND verdict.candidate_id = candidate.id
      AND verdict.ingest = :ingest
""")
_ADD_VERDICTS = in_order("""
    INSERT INTO verdict (run_id, candidate_id, position, outcome, why, ingest, since)
    SELECT :run_id, candidate.id, 0,
      CASE WHEN candidate.problem IS NOT NULL THEN 'review' END, candidate.problem,
      :ingest, :ingest
    FROM staged_row
    CROSS JOIN candidate
      ON candidate.screen = :screen
      AND candidate.key = staged_row.key
      AND candidate.digest = staged_row.digest
    WHERE true
    ON CONFLICT (run_id, candidate_id) DO UPDATE SET ingest = excluded.ingest
""")
# Another candidate under the same key, met by this reading: the content changed, the key stays.
_REPLACED = """EXISTS (
      SELECT 1
      FROM candidate AS gone CROSS JOIN candidate AS here CROSS JOIN verdict AS met
      WHERE gone.id = verdict.candidate_id
        AND here.screen = gone.screen
        AND here.key = gone.key
        AND met.run_id = :run_id
        AND met.candidate_id = here.id
        AND met.ingest = :ingest
    )"""
_UNMET = "verdict.run_id = :run_id AND verdict.ingest < :ingest"
_COUNT_GONE = text(f"SELECT COUNT(*) FROM verdict WHERE {_UNMET} AND NOT {_REPLACED}")  # noqa: S608
_COUNT_BEFORE = text("SELECT COUNT(*) FROM verdict WHERE run_id = :run_id AND since < :ingest")
_FORGET_UNMET = text(f"DELETE FROM verdict WHERE {_UNMET}")  # noqa: S608
_FORGET_REPLACED = text(f"DELETE FROM verdict WHERE {_UNMET} AND {_REPLACED}")  # noqa: S608
_FORGET_BAD = text("DELETE FROM bad_row WHERE run_id = :run_id AND ingest < :ingest")
_FORGET_BAD_MET_AGAIN = text("""
    DELETE FROM bad_row
    WHERE run_id = :run_id AND ingest < :ingest
      AND EXISTS (
        SELECT 1 FROM bad_row AS again
        WHERE again.run_id = :run_id
          AND again.ingest = :ingest
          AND again.source = bad_row.source
          AND again.line = bad_row.line
      )
""")
_TAKE_BACK = (
    text("DELETE FROM verdict WHERE run_id = :run_id AND since = :ingest"),
    text("DELETE FROM bad_row WHERE run_id = :run_id AND ingest = :ingest"),
)
_MET = text("SELECT COUNT(*) FROM verdict WHERE run_id = :run_id AND ingest = :ingest")
_MEAN_CHARACTERS = text("""
    SELECT AVG(LENGTH(body)) FROM (
      SELECT text.body AS body
      FROM verdict
      JOIN candidate ON candidate.id = verdict.candidate_id
      JOIN text ON text.id = candidate.text_id
      WHERE verdict.run_id = :run_id
      LIMIT 1000
    ) AS first_texts
""")


class Row(NamedTuple):
    """One row of input, ready to become a candidate."""

    line: int
    key: str
    text: str
    fields: bytes
    """The record as read: JSON in UTF-8."""
    problem: str | None = None
    """Why it cannot be judged; it is kept, and its verdict is review at once."""


class BadRow(NamedTuple):
    """One row of input that cannot become a candidate."""

    source: str
    line: int
    reason: str
    raw: str
    """The row as it stood; cut to 2,000 characters when stored."""


class Ingested(NamedTuple):
    """What became of one chunk of rows."""

    new: int
    """Under a key that no run of this screen has met."""
    changed: int
    """Under a key that one has met, with content that none has."""
    known: int
    """As a run of this screen has met it, this one or another."""
    duplicate: int
    """Identical to a row met before, since the input was last read from its start."""
    bad: int
    gone: int = 0
    """Candidates that left the run, because the input no longer holds their key."""


class Candidates(Noun):
    """The candidates of all runs."""

    def begin(self, run_id: int) -> None:
        """Begin to read the input from its start."""
        with self._writing() as connection:
            connection.execute(
                update(RunRow).where(RunRow.id == run_id).values(ingests=RunRow.ingests + 1)
            )

    def add(self, run_id: int, rows: Sequence[Row], source: str) -> Ingested:
        """Add one chunk of some thousand rows to the run's candidates.

        A row that is already there is left alone, so a resumed run reads its input again. An
        identical row met twice since `begin` is a duplicate; another row with the same key becomes
        a bad row.
        """
        with uncollected(), self._writing() as connection:
            checkpoint_after(connection, _PAGES)
            target = _target(connection, run_id)
            return _add(connection, target, rows, source)

    def add_bad(self, run_id: int, rows: Sequence[BadRow]) -> None:
        """Keep rows that cannot become candidates, with their reason."""
        with self._writing() as connection:
            _add_bad(connection, run_id, rows)

    def finish(
        self,
        run_id: int,
        rows_read: int,
        duplicates: int,
        *,
        whole: bool = True,
        allow_shrink: bool = False,
    ) -> int:
        """Close the reading of the input, and check that no row of it got lost.

        Args:
            run_id: the run.
            rows_read: all rows that were read, bad ones included.
            duplicates: those among them that `add` counted as duplicates.
            whole: whether all of the input was read: a candidate that was not met leaves the run.
            allow_shrink: whether more than half of the run may leave it.

        Returns:
            How many candidates left the run, those not counted whose content changed.

        Raises:
            InputRefused: more than half would leave it; `cancel` takes the reading back.
        """
        with self._writing() as connection:
            fresh_statistics(connection, "text", "candidate", "candidate_fields", "verdict")
            target = _target(connection, run_id)
            gone = _forget_gone(connection, target, whole=whole, allow_shrink=allow_shrink)
            _check_conservation(connection, target, rows_read, duplicates)
            connection.execute(
                update(RunRow)
                .where(RunRow.id == run_id, true() if whole else RunRow.rows_read <= rows_read)
                .values(rows_read=rows_read, rows_duplicate=duplicates)
            )
            checkpoint_after(connection, _PAGES_ELSE)
            return gone

    def cancel(self, run_id: int) -> None:
        """Take back what was read since `begin`: the run has the candidates of before.

        Candidates and texts stay, for whoever comes.
        """
        with self._writing() as connection:
            checkpoint_after(connection, _PAGES_ELSE)
            parameters = _target(connection, run_id)._asdict()
            for statement in _TAKE_BACK:
                connection.execute(statement, parameters)

    def mean_characters(self, run_id: int) -> float:
        """How long the run's texts are, judged by the first thousand."""
        with self._reading() as connection:
            return float(connection.scalar(_MEAN_CHARACTERS, {"run_id": run_id}) or 0.0)


class _Target(NamedTuple):
    """Where the rows go: a run, and the count of times its input was read from the start."""

    run_id: int
    screen: str
    ingest: int


def _target(connection: Connection, run_id: int) -> _Target:
    """Where rows go that are read now."""
    screen, number = connection.execute(
        select(RunRow.screen, RunRow.ingests).where(RunRow.id == run_id)
    ).one()
    return _Target(run_id, screen, number)


def _add(connection: Connection, target: _Target, rows: Sequence[Row], source: str) -> Ingested:
    """Add the rows that are new; count those that are there, and keep those that clash as bad."""
    chunk = _Chunk(source)
    for row in rows:
        chunk.take(row)
    stage(connection, _STAGED, [kept.staged for kept in chunk.kept.values()])
    parameters, dialect = target._asdict(), connection.dialect.name
    for key in set(connection.execute(_CONFLICTS[dialect], parameters).scalars()):
        chunk.clash(key)
        connection.execute(_DROP_CONFLICT, {"key": key})
    known = set(connection.execute(_KNOWN[dialect], parameters).scalars())
    fresh = len(chunk.kept) - len(known)
    changed = connection.scalar(_CHANGED[dialect], parameters) or 0 if fresh else 0
    met = connection.scalar(_MET_BEFORE[dialect], parameters) or 0 if known else 0
    _add_candidates(connection, chunk, known, target.screen)
    connection.execute(_ADD_VERDICTS[dialect], parameters)
    _add_bad(connection, target.run_id, chunk.bad)
    return Ingested(
        new=fresh - changed,
        changed=changed,
        known=len(known) - met,
        duplicate=chunk.duplicate + met,
        bad=len(chunk.bad),
    )


def _add_candidates(connection: Connection, chunk: "_Chunk", known: set[str], screen: str) -> None:
    """Add the candidates that no run of this screen has met; only their texts are sent."""
    if len(known) == len(chunk.kept):
        return
    texts = [
        (kept.text_digest, kept.row.text)
        for key, kept in chunk.kept.items()
        if kept.text_digest is not None and key not in known
    ]
    add_missing(connection, "text", _TEXT, texts)
    added = connection.execute(_ADD_CANDIDATES[connection.dialect.name], {"screen": screen}).all()
    fields = [(id_, *chunk.kept[key].beside()) for id_, key in added]
    add_missing(connection, "candidate_fields", _FIELDS, fields)


def _add_bad(connection: Connection, run_id: int, rows: Sequence[BadRow]) -> None:
    """Keep rows that cannot become candidates, with their reason."""
    if rows:
        reading = connection.scalar(select(RunRow.ingests).where(RunRow.id == run_id))
        connection.execute(
            insert(BadRowRow),
            [
                {
                    "run_id": run_id,
                    "ingest": reading,
                    "source": storable(row.source),
                    "line": row.line,
                    "reason": storable(row.reason),
                    "raw": storable(row.raw[:_RAW_LIMIT]),
                }
                for row in rows
            ],
        )


def _forget_gone(
    connection: Connection, target: _Target, *, whole: bool, allow_shrink: bool
) -> int:
    """Take candidates out of the run that the input no longer holds, or holds with other content.

    What was said about them stays, for other runs and for their return. Where a part of the input
    was read, only what it holds with other content goes.

    Returns:
        How many keys are gone.

    Raises:
        InputRefused: they are more than half of those that were there.
    """
    parameters = target._asdict()
    if not whole:
        connection.execute(_FORGET_REPLACED, parameters)
        connection.execute(_FORGET_BAD_MET_AGAIN, parameters)
        return 0
    gone = connection.scalar(_COUNT_GONE, parameters) or 0
    before = connection.scalar(_COUNT_BEFORE, parameters) or 0
    if 2 * gone > before and not allow_shrink:
        raise InputRefused(
            f"the input lacks {gone:,} of the run's {before:,} candidates, more than half: nothing "
            "was changed. Look whether it is complete; if they are to leave the run, run again "
            "with --allow-shrink, or give another --key for a new run"
        )
    connection.execute(_FORGET_UNMET, parameters)
    connection.execute(_FORGET_BAD, parameters)
    return gone


def _check_conservation(
    connection: Connection, target: _Target, rows_read: int, duplicates: int
) -> None:
    """Every row that was read since the input was begun is a candidate, a duplicate, or bad."""
    met = connection.scalar(_MET, target._asdict()) or 0
    these = (BadRowRow.run_id == target.run_id, BadRowRow.ingest == target.ingest)
    bad = connection.scalar(select(func.count()).where(*these)) or 0
    if rows_read != met + duplicates + bad:
        raise StoreError(
            f"{rows_read:,} rows were read, but {met:,} candidates, {duplicates:,} duplicates and "
            f"{bad:,} bad rows are remembered; the input changed while it was read, or rows got "
            "lost: run again"
        )


class _Kept(NamedTuple):
    row: Row
    digest: bytes
    """Of all that makes the candidate: text, fields and problem."""
    text_digest: bytes | None
    """None for a row that cannot be judged: its text is not stored apart."""
    problem: str | None

    def beside(self) -> Beside:
        """What is stored of the record beside the text."""
        if self.text_digest is None:
            return Beside(self.row.fields.decode(), None)
        return beside(self.row.fields, self.row.text)

    @property
    def staged(self) -> tuple[Any, ...]:
        return (self.row.key, self.digest, self.text_digest, self.problem)


class _Chunk:
    """Rows hashed and ready to be staged; what needs no database is settled here."""

    def __init__(self, source: str) -> None:
        self.kept: dict[str, _Kept] = {}
        self.bad: list[BadRow] = []
        self.duplicate = 0
        self._source = source

    def take(self, row: Row) -> None:
        try:
            kept = _hashed(row)
        except ValueError as error:
            self._refuse(row, f"no database can keep it: {error}")
            return
        first = self.kept.setdefault(row.key, kept)
        if first is kept:
            return
        if first.digest == kept.digest:
            self.duplicate += 1
        else:
            self._refuse(row, _conflict(row.key))

    def clash(self, key: str) -> None:
        """A row of the database has this key and another content."""
        self._refuse(self.kept.pop(key).row, _conflict(key))

    def _refuse(self, row: Row, reason: str) -> None:
        raw = row.fields.decode(errors="replace")
        self.bad.append(BadRow(self._source, row.line, reason, raw))


def _hashed(row: Row) -> _Kept:
    """The row with its digests.

    Raises:
        ValueError: the text or the key holds what cannot be stored.
    """
    if "\0" in row.key or "\0" in row.text:
        raise ValueError("the key or the text holds a NUL character; replace it")
    row.key.encode()
    digest = blake2b(row.text.encode(), digest_size=TEXT_DIGEST)
    text_digest = digest.digest()
    digest.update(b"\0")
    digest.update(row.fields)
    problem = row.problem or (None if row.text else "empty text")
    if problem is not None:
        digest.update(problem.encode())
        return _Kept(row, digest.digest(), None, problem)
    return _Kept(row, digest.digest(), text_digest, None)


def text_digest(text: str) -> bytes:
    """What names a text; equal texts are one."""
    return blake2b(text.encode(), digest_size=TEXT_DIGEST).digest()


def _conflict(key: str) -> str:
    return f"duplicate key '{key}' with different content; the first was kept"
