"""The history of the schema. Alembic runs it; `db.engine` finds it by this package."""
