"""Leases of the exploration budget; whose vectors an agent's decisions have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.add_column("agents", sa.Column("embedder", sa.JSON(), nullable=True))
    op.add_column("agents", sa.Column("probes", sa.LargeBinary(), nullable=True))
    op.create_table(
        "exploration_leases",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.Integer(), nullable=False),
        sa.Column("amount", sa.Integer(), nullable=False),
        sa.Column("granted_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_exploration_leases_agent_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exploration_leases")),
    )
    op.create_index(
        op.f("ix_exploration_leases_agent_id_granted_at"),
        "exploration_leases",
        ["agent_id", "granted_at"],
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_index(
        op.f("ix_exploration_leases_agent_id_granted_at"), table_name="exploration_leases"
    )
    op.drop_table("exploration_leases")
    op.drop_column("agents", "probes")
    op.drop_column("agents", "embedder")
