"""How things are called: ids of rows, and ids of workflows, task queues, schedules, signals and search attributes.

Everything that lives in Temporal carries the installation's id, so that two installations (or two tests) share a
namespace without meeting.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from datetime import datetime

_ORDER_NAMESPACE = uuid.UUID("5f0c1b0e-6a43-5d0c-9d0f-2f7a1e6b9c51")

STATUS_ATTRIBUTE = "WaybillOrderStatus"
ZONE_ATTRIBUTE = "WaybillZone"
EVENT_TYPE_ATTRIBUTE = "WaybillEventType"
ERROR_CLASS_ATTRIBUTE = "WaybillErrorClass"
SEARCH_ATTRIBUTES = (STATUS_ATTRIBUTE, ZONE_ATTRIBUTE, EVENT_TYPE_ATTRIBUTE, ERROR_CLASS_ATTRIBUTE)
"""All of type Keyword; none holds personal data."""

RELAY_WORKFLOW = "OutboxRelayWorkflow"
SWEEP_WORKFLOW = "SweepWorkflow"
CROSS_CHECK_WORKFLOW = "CrossCheckWorkflow"
ORDER_WORKFLOW = "OrderWorkflow"
RECONCILE_WORKFLOW = "ReconcileWorkflow"
SNAPSHOT_WORKFLOW = "SnapshotWorkflow"
RETENTION_WORKFLOW = "RetentionWorkflow"
"""By name: the cross-check starts them, and activities know no workflow classes."""

FAILURE_WORKFLOW = "OutboxFailureWorkflow"
"""By name: relays start it, and activities know no workflow classes."""

OUTBOX_REPLAY_WORKFLOW = "OutboxReplayWorkflow"
"""By name: the cross-check starts it."""

LOOK_AGAIN_SIGNAL = "look_again"
"""Tells the workflow of a failing message, or of a bulk operation, that its row may have changed."""

DISPATCH_WORKFLOW = "DispatchWorkflow"
"""By name: the `workflow` sink starts it."""

DISPATCH_RULE_MEMO = "rule"
"""By which rule a run of a zone's dispatch decides; none stands for 0.

A memo and no argument: workers of the version before do not mind one that they do not know.
"""
DISPATCH_RULE = 1

WAKE_SIGNAL = "wake"
"""Tells a zone's dispatch that there is something to do."""

ROW_CHANGED_SIGNAL = "row_changed"
"""Tells an order's workflow the stage that its row reached without it."""


def order_id(principal: str, idempotency_key: str) -> str:
    """The order's id: the same caller with the same key always means the same order."""
    return str(uuid.uuid5(_ORDER_NAMESPACE, f"{len(principal)}:{principal}:{idempotency_key}"))


def delivery_id(order_id: str) -> str:
    """The id of an order's one delivery."""
    return str(uuid.uuid5(_ORDER_NAMESPACE, f"delivery:{order_id}"))


def new_id() -> str:
    """A time-ordered UUID (version 7, RFC 9562 section 5.7): neighbours in time are neighbours in an index."""
    random_bits = int.from_bytes(os.urandom(10), "big")
    return _version_7(time.time_ns() // 1_000_000, random_bits)


def first_id_of(moment: datetime) -> str:
    """The least of the ids that `new_id` makes at that moment: those made before are less."""
    return _version_7(int(moment.timestamp() * 1000), 0)


def _version_7(milliseconds: int, random_bits: int) -> str:
    value = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | (random_bits >> 68) << 64
    value |= 0b10 << 62 | random_bits & (2**62 - 1)
    return str(uuid.UUID(int=value))


@dataclass(frozen=True)
class Names:
    """The Temporal names of one installation."""

    installation: str

    @property
    def main_queue(self) -> str:
        """Task queue of every workflow and of every activity but the relays."""
        return f"{self.installation}-main"

    @property
    def relay_queue(self) -> str:
        """Task queue of the relays' long activities."""
        return f"{self.installation}-relay"

    def order(self, order_id: str) -> str:
        """Workflow id of an order."""
        return f"{self.installation}-order-{order_id}"

    def dispatch(self, zone: str) -> str:
        """Workflow id of a zone's dispatch."""
        return f"{self.installation}-dispatch-{zone}"

    def relay(self, shard: int) -> str:
        """Workflow id of a shard's relay."""
        return f"{self.installation}-outbox-relay-{shard}"

    def failure(self, message_id: str) -> str:
        """Workflow id of a failing message's retries."""
        return f"{self.installation}-outbox-failure-{message_id}"

    def outbox_replay(self, operation_id: str) -> str:
        """Workflow id of a bulk operation on failed messages."""
        return f"{self.installation}-outbox-replay-{operation_id}"

    @property
    def cross_check_schedule(self) -> str:
        """Id of the schedule that cross-checks."""
        return f"{self.installation}-cross-check"

    def cross_check(self, operation_id: str) -> str:
        """Workflow id of a cross-check that an admin or a start-up asked for."""
        return f"{self.installation}-cross-check-{operation_id}"

    def reconcile(self, operation_id: str) -> str:
        """Workflow id of a reconciliation."""
        return f"{self.installation}-reconcile-{operation_id}"

    def snapshot(self, snapshot_id: str) -> str:
        """Workflow id of a snapshot's capture."""
        return f"{self.installation}-snapshot-{snapshot_id}"

    def sweep(self, operation_id: str) -> str:
        """Workflow id of a sweep that an admin asked for."""
        return f"{self.installation}-sweep-{operation_id}"

    @property
    def sweep_schedule(self) -> str:
        """Id of the schedule that sweeps; the workflows it starts add the time."""
        return f"{self.installation}-sweep"

    @property
    def retention_schedule(self) -> str:
        """Id of the schedule that deletes what is long over."""
        return f"{self.installation}-retention"
