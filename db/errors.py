"""What can go wrong with the database, said so that somebody can act on it."""

import re

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, IntegrityError

_CAUSES = (
    ("database or disk is full", "its disk is full; free some space"),
    ("no space left on device", "its disk is full; free some space"),
    ("could not extend file", "its disk is full; free some space"),
    ("readonly database", "it is read-only; make the file and its folder writable"),
    ("read-only transaction", "it is read-only; use a user and a server that may write"),
    ("permission denied", "this user may not; grant it the rights, or use another user"),
    ("database is locked", "another process keeps it locked; end that process or wait for it"),
    ("unable to open database file", "the file cannot be opened; check the path and its rights"),
    ("disk i/o error", "the disk fails; check it, and do not keep the file on a network share"),
    ("image is malformed", "the file is damaged; restore it from a copy"),
    ("not a database", "the file is not an SQLite database; give another path"),
    *(
        (part, "the server cannot be reached; check that it runs, and the URL")
        for part in (
            "connection failed",
            "connection is bad",
            "connection is closed",
            "connection is lost",
            "connection timeout",
            "connection to server",
            "closed the connection",
            "failed to resolve host",
            "terminating connection",
        )
    ),
)
"""Part of a driver's message, in lower case, and what it means: the first that fits is told."""


_REFUSED = re.compile(r"permission denied for (?:table|view|relation|sequence) (\w+)")


class StoreError(Exception):
    """The database cannot do what was asked: what was wrong, where, and what to do."""


class InputRefused(StoreError):
    """The input is not taken, and the run stands as it did before it was read."""


class DatabaseError(StoreError):
    """The database itself is the trouble: unreachable, full, read-only, or at another revision."""


class WrongUrl(DatabaseError):
    """It names no database that could be used."""


class EmptyDatabase(WrongUrl):
    """There is no database, or nothing of ours in it: most often the wrong folder or URL."""


class RunHeld(StoreError):
    """Another process works on the run."""


def shown(url: URL) -> str:
    """The URL as messages may print it: without its password."""
    return url.render_as_string(hide_password=True)


def explained(error: Exception, url: URL) -> Exception:
    """The driver's error as one of ours; the same error where it tells of a mistake in our code.

    Args:
        error: raised by SQLAlchemy, or by the driver itself inside a COPY.
        url: the database it came from.
    """
    reason = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    if isinstance(error, IntegrityError) or type(error).__name__.endswith("Violation"):
        return StoreError(f"database {shown(url)} refused a row, nothing was written: {reason}")
    if (refused := _REFUSED.search(reason)) is not None:
        what, user = refused[1], url.username or "USER"
        return DatabaseError(
            f"database {shown(url)}: user {user} may not use {what}; whoever owns it can write "
            f"GRANT SELECT ON {what} TO {user} (INSERT, UPDATE and DELETE, too, for who runs "
            f"screens); the driver said: {reason}"
        )
    for part, meaning in _CAUSES:
        if part in reason.lower():
            return DatabaseError(
                f"database {shown(url)}: {meaning}, then run again "
                f"(all that was committed before is safe); the driver said: {reason}"
            )
    return error
