"""A second migration, for tests: compatible with revision 0001, and its downgrade declares its data loss."""

SECOND_MIGRATION = '''"""Adds a column for notes on claims."""

from alembic import op

revision = "0002"
down_revision = "0001"
compatible_with = ("0001",)
data_loss = {"claims": "SELECT count(*) FROM claims WHERE note IS NOT NULL"}


def upgrade() -> None:
    op.execute("ALTER TABLE claims ADD COLUMN note text")


def downgrade() -> None:
    op.execute("ALTER TABLE claims DROP COLUMN note")
'''
