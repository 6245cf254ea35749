"""How Alembic reaches a database: on the connection that `db.engine` hands it."""

from alembic import context

from db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a table in place
    transaction_per_migration=False,
    transactional_ddl=True,  # the connection's transaction is real, on SQLite too
)
context.run_migrations()
