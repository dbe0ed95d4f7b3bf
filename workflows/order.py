"""An order's whole story."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy, SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.exceptions import TimeoutError as TimedOut

with workflow.unsafe.imports_passed_through():
    from activities.order import OrderActivities
    from domain.ids import ROW_CHANGED_SIGNAL, STATUS_ATTRIBUTE
    from domain.order import NewOrder, OrderCommand, OrderState, OrderStatus, refusal

STATUS = SearchAttributeKey.for_keyword(STATUS_ATTRIBUTE)

# A transaction first runs as a local activity: no task-queue round trip. One that keeps failing there would block
# updates and hide from the Temporal UI, so after this long it goes on as a normal one, for as long as it takes.
_LOCAL_SECONDS = 4
_SHORTEST_TIMER_SECONDS = 0.01
# Temporal takes 2,000 updates in a run: a client may extend a hold as often as it likes.
_UPDATES_PER_RUN = 500

_DETAILS = {
    OrderStatus.RESERVED: "The units are held until the hold ends; waiting for confirm, extend or cancel.",
    OrderStatus.CONFIRMED: "Paid for; the delivery is under way.",
    OrderStatus.DELIVERED: "At the door.",
    OrderStatus.REJECTED: "There was not enough stock; nothing is held.",
    OrderStatus.EXPIRED: "The hold ended before a confirm; the units are back.",
    OrderStatus.CANCELLED: "Cancelled; the units are back.",
}


@workflow.defn
class OrderWorkflow:
    """Reserve → hold → confirm → deliver. The order's row is the truth; this is the process that looks after it."""

    @workflow.init
    def __init__(self, order: NewOrder) -> None:
        self._order = order
        self._state: OrderState | None = None
        self._updates = 0
        self._behind = False
        # Transactions of one order do not interleave: the workflow always knows what its row said last.
        self._lock = asyncio.Lock()

    @workflow.run
    async def run(self, order: NewOrder) -> OrderStatus:
        """Run until the order's end. The first step reserves or loads: a first start and a restart are one path."""
        self._adopt(await self._transact(OrderActivities.reserve_order, order))
        while self._stage.open:
            if self._updates >= _UPDATES_PER_RUN or workflow.info().is_continue_as_new_suggested():
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(order)  # the next run loads the row, as any start does
            if self._stage is OrderStatus.RESERVED:
                await self._until_deadline(OrderActivities.expire_order, "the hold ends")
            else:
                await self._until_deadline(OrderActivities.watch_promise, "the promised time of delivery")
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._stage

    async def _until_deadline(self, activity: Callable[..., Any], summary: str) -> None:
        """Wait for the stage's deadline, or for the row to change; at the deadline the database's clock decides."""
        before = self._state
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._state is not before or self._behind, timeout=self._timeout(), timeout_summary=summary
            )
        async with self._lock:
            if self._state is before:
                self._behind = False
                self._adopt(await self._transact(activity, self._order.order_id))

    def _timeout(self) -> timedelta | None:
        """Until the stage's deadline; None where it has none any more. A hold always has one."""
        seconds = self._state.seconds_left if self._state else None
        if seconds is None and self._stage is not OrderStatus.RESERVED:
            return None
        return timedelta(seconds=max(seconds or 0.0, _SHORTEST_TIMER_SECONDS))

    # --- updates: what clients ask for

    @workflow.update
    async def reserved(self, request_hash: str) -> OrderState:
        """Travels with the start and waits for its outcome."""
        return await self._decided()

    @reserved.validator
    def _refuse_other_body(self, request_hash: str) -> None:
        if request_hash != self._order.request_hash:
            raise ApplicationError("the key was used with another body", type="idempotency-key-reused")

    @workflow.update
    async def confirm(self) -> OrderState:
        """The order was paid for."""
        return await self._command(OrderActivities.confirm_order, self._order.order_id)

    @confirm.validator
    def _refuse_confirm(self) -> None:
        self._refuse(OrderCommand.CONFIRM)

    @workflow.update
    async def extend(self, hold_seconds: int) -> OrderState:
        """Hold on for that many seconds from now."""
        return await self._command(OrderActivities.extend_order, self._order.order_id, hold_seconds)

    @extend.validator
    def _refuse_extend(self, hold_seconds: int) -> None:
        self._refuse(OrderCommand.EXTEND)

    @workflow.update
    async def cancel(self) -> OrderState:
        """The order is not wanted any more."""
        return await self._command(OrderActivities.cancel_order, self._order.order_id)

    @cancel.validator
    def _refuse_cancel(self) -> None:
        self._refuse(OrderCommand.CANCEL)

    @workflow.signal(name=ROW_CHANGED_SIGNAL)
    def row_changed(self, stage: OrderStatus) -> None:
        """The row reached this stage without the workflow (the outbox tells, or the cross-check)."""
        if stage.open:
            self._behind = stage is not self._stage  # there is a deadline to learn: look at the row
        else:
            self._adopt(OrderState(stage))

    # --- how it works

    @property
    def _stage(self) -> OrderStatus:
        return self._state.stage if self._state else OrderStatus.RESERVED

    async def _decided(self) -> OrderState:
        await workflow.wait_condition(lambda: self._state is not None)
        assert self._state is not None
        return self._state

    async def _command(self, activity: Callable[..., Any], *arguments: object) -> OrderState:
        await self._decided()
        self._updates += 1
        async with self._lock:
            state = await self._transact(activity, *arguments)
            self._adopt(state)
        return state

    def _refuse(self, command: OrderCommand) -> None:
        """A command that the stage rules out is turned away before it writes any history."""
        if self._state and (slug := refusal(command, self._state.stage)):
            raise ApplicationError(f"the order is {self._state.stage}", type=slug)

    def _adopt(self, state: OrderState) -> None:
        """Believe the row. Ends are final: what was read before an end and arrives after it is old news."""
        if self._state and not self._state.stage.open:
            return
        if state.stage is not self._stage:
            workflow.upsert_search_attributes([STATUS.value_set(state.stage)])
        self._state = state
        workflow.set_current_details(f"**{state.stage}**. {_DETAILS[state.stage]}")

    async def _transact(self, activity: Callable[..., Any], *arguments: object) -> OrderState:
        """Run one of the order's transactions, for as long as it takes."""
        try:
            state: OrderState = await workflow.execute_local_activity_method(
                activity,
                args=arguments,
                schedule_to_close_timeout=timedelta(seconds=_LOCAL_SECONDS),
                retry_policy=RetryPolicy(
                    initial_interval=timedelta(milliseconds=50), maximum_interval=timedelta(seconds=1)
                ),
            )
        except (ActivityError, TimedOut) as error:
            # That its time is over is an ActivityError when it happens, and a bare TimedOut when that is replayed.
            if isinstance(error.cause, ApplicationError) and error.cause.non_retryable:
                raise
            state = await workflow.execute_activity_method(
                activity,
                args=arguments,
                start_to_close_timeout=timedelta(seconds=30),
                retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
                summary=f"order {self._order.order_id}",
            )
        return state
