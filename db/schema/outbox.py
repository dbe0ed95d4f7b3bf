"""The log of events, and where each of them is on the way to each endpoint."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from db.schema.base import metadata, time

outbox_events = Table(
    "outbox_events",
    metadata,
    # Drawn under the lock of the lane's row, so it grows along every lane.
    Column("position", BigInteger, primary_key=True, autoincrement=True),
    Column("event_id", UUID(as_uuid=False), nullable=False, unique=True),
    Column("event_type", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("lane", Text, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("data", JSONB, nullable=False),
    time("occurred_at", nullable=False),
    # The event that went wrong, where this one was made by an admin to take its place for one endpoint.
    Column("fixes", UUID(as_uuid=False)),
)

outbox_endpoints = Table(
    "outbox_endpoints",
    metadata,
    Column("endpoint_id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("url", Text),
    Column("event_types", ARRAY(Text)),
    Column("enabled", Boolean, nullable=False, server_default="true"),
    Column("secret", Text),
    Column("previous_secret", Text),
    time("previous_secret_until"),
    # The breaker: open while open_until is set; after that moment one probe at a time is let through.
    time("open_until"),
    Column("consecutive_failures", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    time("reachable_since", default=True, nullable=False),
    time("failing_since"),
    # Set by the breaker, where trying again is pointless: nothing is sent until an admin enables the endpoint.
    Column("disabled_reason", Text),
    # Events of these types travel in lanes of their own: they wait for nobody, and nobody waits for them.
    Column("unordered_types", ARRAY(Text), nullable=False, server_default="{}"),
    # They were changed, and what waits may still be in lanes of before.
    Column("lanes_stale", Boolean, nullable=False, server_default="false"),
    # An admin has ended it; what waits for it is dropped by and by, and the row at last.
    time("deletion_began_at"),
    time("created_at", default=True, nullable=False),
    CheckConstraint("kind IN ('webhook', 'workflow', 'email')", name="kind"),
)

outbox_shards = Table(
    "outbox_shards",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("owner", Text),
    time("taken_at"),
    # Fleet-wide counters live here: the row is written by every settle anyway.
    Column("dispatched", BigInteger, nullable=False, server_default="0"),
    Column("errors_event", BigInteger, nullable=False, server_default="0"),
    Column("errors_endpoint", BigInteger, nullable=False, server_default="0"),
    Column("errors_unknown", BigInteger, nullable=False, server_default="0"),
    Column("failed_transitions", BigInteger, nullable=False, server_default="0"),
)

outbox_messages = Table(
    "outbox_messages",
    metadata,
    # Ready to go. A row's presence is what "pending" means; it is inserted and deleted, never updated.
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    # Its place in the lane. The event it carries is the one logged there, unless a fix put another in its place.
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_position", BigInteger, nullable=False),
    Column("lane", Text, nullable=False),
    time("ready_at", default=True, nullable=False),
)

outbox_claims = Table(
    "outbox_claims",
    metadata,
    # What a relay is sending right now: written before the first byte goes out, so that a crash leaves a trace.
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("positions", ARRAY(BigInteger), nullable=False),
    # Evidence for the question whose fault a failure is: something of this lane passed there at that time.
    Column("passed_lane", Text),
    time("passed_at"),
    # After a relay died: at most so many are claimed at a time until all it may have been sending (up to that position)
    # are through, so that one that kills its relay is found out without the others paying for it.
    Column("narrowed_to", Integer),
    Column("suspect_until", BigInteger),
    # How often in a row a relay died while it was sending that one message alone.
    Column("interruptions", Integer, nullable=False, server_default="0"),
    # The lane that a probe was of: the next one is of the lane after it, in the order of a hash of their names.
    Column("probe_cursor", BigInteger),
)

outbox_parked = Table(
    "outbox_parked",
    metadata,
    # Waits aside, behind a failing message of its lane.
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_position", BigInteger, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("lane", Text, nullable=False),
    time("parked_at", default=True, nullable=False),
    Index("outbox_parked_lane", "endpoint_id", "lane", "position"),
)

outbox_failures = Table(
    "outbox_failures",
    metadata,
    # A message that failed for a reason of its own; kept after its end, until retention takes it.
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_position", BigInteger, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("lane", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error_class", Text, nullable=False),
    Column("last_error", Text, nullable=False),
    # What failed for the same reason as others: the groups that an admin sees.
    Column("fingerprint", Text, nullable=False),
    # Goes out instead of the event's own data, under the event's id: no attempt of it can have succeeded.
    Column("fixed_data", JSONB),
    time("failed_at", default=True, nullable=False),
    time("next_attempt_at"),
    # Set while a retry is being made: one that is still set when the next begins was interrupted.
    time("attempt_began_at"),
    # Set while the message holds one of the places that its shard has for failures' workflows.
    time("workflow_started_at"),
    CheckConstraint("status IN ('PENDING', 'RETRYING', 'FAILED', 'DELIVERED', 'IGNORED')", name="status"),
    Index(
        "outbox_failures_blocked_lanes",
        "endpoint_id",
        "lane",
        unique=True,
        postgresql_where=text("status IN ('RETRYING', 'FAILED')"),
    ),
    Index("outbox_failures_newest", "status", text("failed_at DESC"), text("position DESC"), text("endpoint_id DESC")),
    Index(
        "outbox_failures_without_workflow",
        "shard",
        "endpoint_id",
        "position",
        postgresql_where=text("status = 'RETRYING' AND workflow_started_at IS NULL"),
    ),
    Index("outbox_failures_with_workflow", "shard", postgresql_where=text("workflow_started_at IS NOT NULL")),
    Index("outbox_failures_groups", "status", "fingerprint", "failed_at"),
)

outbox_attempts = Table(
    "outbox_attempts",
    metadata,
    # Attempts that did not deliver. The one that did is in outbox_finished.
    Column("attempt_id", BigInteger, primary_key=True, autoincrement=True),
    Column("endpoint_id", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    # The event that was sent: a fix may put another one in the message's place.
    Column("event_position", BigInteger, nullable=False),
    time("at", default=True, nullable=False),
    # 'failed' surely did not succeed; the others may have.
    Column("outcome", Text, nullable=False),
    Column("error_class", Text),
    Column("error", Text),
    Index("outbox_attempts_message", "position", "endpoint_id", "attempt_id"),
    CheckConstraint("outcome IN ('failed', 'in_doubt', 'interrupted')", name="outcome"),
)

outbox_finished = Table(
    "outbox_finished",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("status", Text, nullable=False),
    Column("duration_ms", Double),
    time("finished_at", default=True, nullable=False),
    CheckConstraint("status IN ('DELIVERED', 'IGNORED')", name="status"),
)

notifications = Table(
    "notifications",
    metadata,
    # What customers were told: one row for each event, channel and recipient, made before the first attempt.
    Column("event_id", UUID(as_uuid=False), primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("recipient", Text, primary_key=True),
    # Kept, so that every attempt carries the same, whatever the sender's address is by then.
    Column("message_id", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="1"),
    # Sends that began when it was settled already, and completed: never any.
    Column("sent_again", Integer, nullable=False, server_default="0"),
    time("created_at", default=True, nullable=False),
    # Settled: the channel's server took it. While it is null, an attempt's fate may be unknown.
    time("sent_at"),
    Index("notifications_sent_again", "event_id", postgresql_where=text("sent_again > 0")),
)

outbox_replays = Table(
    "outbox_replays",
    metadata,
    # A bulk operation on failed messages.
    Column("operation_id", Text, primary_key=True),
    Column("action", Text, nullable=False),
    Column("filter", JSONB, nullable=False),
    Column("dry_run", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    # How many messages it froze, how many of them it changed, and how many were no longer FAILED by then.
    Column("total", Integer, nullable=False, server_default="0"),
    Column("done", Integer, nullable=False, server_default="0"),
    Column("skipped", Integer, nullable=False, server_default="0"),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    time("created_at", default=True, nullable=False),
    time("finished_at"),
    CheckConstraint("action IN ('replay', 'ignore')", name="action"),
    CheckConstraint("status IN ('RUNNING', 'PAUSED', 'DONE', 'FAILED')", name="status"),
    Index("outbox_replays_newest", text("created_at DESC"), text("operation_id DESC")),
    Index("outbox_replays_running", "operation_id", postgresql_where=text("status = 'RUNNING'")),
)

outbox_replay_items = Table(
    "outbox_replay_items",
    metadata,
    # The operation's messages, frozen when it was asked for.
    Column("operation_id", Text, ForeignKey("outbox_replays.operation_id", ondelete="CASCADE"), primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("outcome", Text),
    CheckConstraint("outcome IN ('done', 'skipped')", name="outcome"),
    Index(
        "outbox_replay_items_open",
        "operation_id",
        "position",
        "endpoint_id",
        postgresql_where=text("outcome IS NULL"),
    ),
)
