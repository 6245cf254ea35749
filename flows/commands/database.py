"""The database itself: tamis db."""

import typer

from flows.commands.console import Database, out, settings

app = typer.Typer(name="db", no_args_is_help=True, help="Create or inspect the database.")


@app.command(epilog="Example: `tamis db upgrade --database postgresql://host/tamis`")
def upgrade(database: Database = None) -> None:
    """Create the tables, or bring an older database up to date."""
    from db.engine import current
    from db.engine import upgrade as upgrade_database

    url = settings().database(database)
    upgrade_database(url)
    out.print(f"the database is at revision {current(url)}")


@app.command(epilog="Example: `tamis db current`")
def current(database: Database = None) -> None:
    """Print the database's revision."""
    from db.engine import current as current_revision

    out.print(current_revision(settings().database(database)) or "empty")


@app.command(epilog="Example: `tamis db compact`")
def compact(database: Database = None) -> None:
    """Store the records of older versions once, not twice; afterwards an SQLite file is smaller."""
    from db.compact import compact as compact_database
    from db.engine import check_ready

    url = settings().database(database)
    check_ready(url, create=False)
    done = compact_database(url)
    out.print(f"{done.records:,} records are shorter now, by {done.characters:,} characters in all")
