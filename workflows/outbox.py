"""The relays' process, and the retries of one failing message."""

from __future__ import annotations

import contextlib
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.outbox import RELAY_SECONDS, OutboxActivities
    from domain.ids import FAILURE_WORKFLOW, LOOK_AGAIN_SIGNAL
    from domain.outbox import MessageStatus

RELAY_HEARTBEAT_SECONDS = 6
"""A relay that was killed or frozen is replaced after this long."""
_SHORTEST_TIMER_SECONDS = 0.1


@workflow.defn
class OutboxRelayWorkflow:
    """Keeps one shard's relay running: one long activity after the other, about a dozen events each."""

    @workflow.run
    async def run(self, shard: int, relay_queue: str) -> None:
        """Run one relay activity, then continue as new. Its retries write no history."""
        workflow.set_current_details(f"Carries the messages of shard {shard}.")
        await workflow.execute_activity_method(
            OutboxActivities.relay,
            shard,
            task_queue=relay_queue,
            start_to_close_timeout=timedelta(seconds=RELAY_SECONDS + 60),
            heartbeat_timeout=timedelta(seconds=RELAY_HEARTBEAT_SECONDS),
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), backoff_coefficient=1.0),
            summary=f"shard {shard}",
        )
        workflow.continue_as_new(args=[shard, relay_queue])


@workflow.defn(name=FAILURE_WORKFLOW)
class OutboxFailureWorkflow:
    """Tries one failing message again and again; ends when it is delivered, or visibly failed when it has FAILED."""

    def __init__(self) -> None:
        self._look_again = False

    @workflow.run
    async def run(self, message_id: str) -> MessageStatus:
        """Answer how the message ended, or that an admin took it back (PENDING). FAILED: the workflow fails too.

        RETRYING: its endpoint cannot be sent to, and whoever finds that it can starts the workflow again.
        """
        while True:
            self._look_again = False
            outcome = await workflow.execute_activity_method(
                OutboxActivities.retry_message,
                message_id,
                start_to_close_timeout=timedelta(seconds=60),
                retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
                summary="try again, if it is due",
            )
            told = f" ({outcome.error})" if outcome.error else ""
            workflow.set_current_details(f"**{outcome.status}** after {outcome.attempts} attempts{told}")
            if self._look_again:  # what was just read may be old
                continue
            if outcome.status is MessageStatus.FAILED:
                raise ApplicationError(
                    f"FAILED after {outcome.attempts} attempts{told}", type="MessageFailed", non_retryable=True
                )
            if outcome.status is not MessageStatus.RETRYING or outcome.place_given_back:
                return outcome.status
            await self._sleep(max(outcome.wait_seconds, _SHORTEST_TIMER_SECONDS))

    async def _sleep(self, seconds: float) -> None:
        """Until the next try, or until the row may have changed."""
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._look_again, timeout=timedelta(seconds=seconds), timeout_summary="until the next try"
            )

    @workflow.signal(name=LOOK_AGAIN_SIGNAL)
    def look_again(self) -> None:
        """The row may have changed: an admin replayed the message, and it failed again."""
        self._look_again = True
