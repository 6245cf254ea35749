"""A record's long values stand in its text alone; the view `candidate_record` puts them together."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# For each piece of the fields: the piece, then a value from the text as JSON quotes it.
RECORD = {
    "sqlite": """\
SELECT
  candidate_fields.candidate_id AS candidate_id,
  CASE WHEN candidate_fields.from_text IS NULL THEN candidate_fields.fields ELSE (
    SELECT group_concat(
      substr(
        candidate_fields.fields,
        json_extract(piece.value, '$[0]'),
        json_extract(piece.value, '$[1]')
      ) || CASE WHEN json_array_length(piece.value) = 2 THEN '' ELSE json_quote(
        COALESCE(json_extract(piece.value, '$[4]'), '') || substr(
          text.body,
          json_extract(piece.value, '$[2]'),
          json_extract(piece.value, '$[3]')
        ) || COALESCE(json_extract(piece.value, '$[5]'), '')
      ) END,
      ''
    ) FROM json_each(candidate_fields.from_text) AS piece
  ) END AS fields
FROM candidate_fields
JOIN candidate ON candidate.id = candidate_fields.candidate_id
LEFT JOIN text ON text.id = candidate.text_id""",
    "postgresql": """\
SELECT
  candidate_fields.candidate_id AS candidate_id,
  CASE WHEN candidate_fields.from_text IS NULL THEN candidate_fields.fields ELSE (
    SELECT string_agg(
      substr(candidate_fields.fields, (piece.place ->> 0)::int, (piece.place ->> 1)::int)
      || CASE WHEN json_array_length(piece.place) = 2 THEN '' ELSE to_json(
        COALESCE(piece.place ->> 4, '')
        || substr(text.body, (piece.place ->> 2)::int, (piece.place ->> 3)::int)
        || COALESCE(piece.place ->> 5, '')
      )::text END,
      '' ORDER BY piece.number
    ) FROM json_array_elements(candidate_fields.from_text::json)
      WITH ORDINALITY AS piece (place, number)
  ) END AS fields
FROM candidate_fields
JOIN candidate ON candidate.id = candidate_fields.candidate_id
LEFT JOIN text ON text.id = candidate.text_id""",
}
RESULT = """\
SELECT
  run.key AS run,
  run.screen AS screen,
  candidate.key AS key,
  CASE verdict.outcome
    WHEN 'accept' THEN 'accepted'
    WHEN 'reject' THEN 'rejected'
    WHEN 'review' THEN 'review'
    WHEN 'failed' THEN 'failed'
    ELSE 'pending'
  END AS verdict,
  run_tier.name AS tier,
  judgement.score AS score,
  judgement.reading AS reading,
  verdict.why AS why,
  {fields} AS fields,
  text.body AS text
FROM run
JOIN verdict ON verdict.run_id = run.id
LEFT JOIN candidate ON candidate.id = verdict.candidate_id{join}
LEFT JOIN run_tier ON run_tier.run_id = verdict.run_id AND run_tier.position = verdict.position
LEFT JOIN text ON text.id = candidate.text_id
LEFT JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id"""
# Half of what reading rows costs a Postgres server is the compression of texts.
LZ4 = """\
SELECT 1 FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)"""
LONG = {"text": "body", "candidate_fields": "fields"}
# A query in the list, which only those pay who ask for the fields.
FIELDS = """(
    SELECT candidate_record.fields FROM candidate_record
    WHERE candidate_record.candidate_id = verdict.candidate_id
  )"""
BEFORE = """
LEFT JOIN candidate_fields ON candidate_fields.candidate_id = verdict.candidate_id"""


def upgrade() -> None:
    """Rows that are there stay as they are, and read as before: no table is rewritten."""
    op.add_column("candidate_fields", sa.Column("from_text", sa.Text(), nullable=True))
    op.execute(f"CREATE VIEW candidate_record AS {RECORD[op.get_bind().dialect.name]}")
    op.execute("DROP VIEW result")
    op.execute(f"CREATE VIEW result AS {RESULT.format(fields=FIELDS, join='')}")
    _compress("lz4")


def downgrade() -> None:
    _compress("default")
    op.execute(
        "UPDATE candidate_fields SET fields = (SELECT candidate_record.fields FROM candidate_record "
        "WHERE candidate_record.candidate_id = candidate_fields.candidate_id) "
        "WHERE from_text IS NOT NULL"
    )
    op.execute("DROP VIEW result")
    op.execute("DROP VIEW candidate_record")
    op.drop_column("candidate_fields", "from_text")
    op.execute(
        f"CREATE VIEW result AS {RESULT.format(fields='candidate_fields.fields', join=BEFORE)}"
    )


def _compress(method: str) -> None:
    """How Postgres compresses what is written from now on, where the server was built with lz4."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql" and connection.exec_driver_sql(LZ4).scalar():
        for table, column in LONG.items():
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET COMPRESSION {method}")
