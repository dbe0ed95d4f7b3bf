"""What an order's workflow has done to its row: one call is one transaction, its events included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio import activity
from temporalio.exceptions import ApplicationError

from db import order as orders
from db.engine import DATABASE_ERRORS, Database, error_code
from domain.order import NewOrder, OrderState


class OrderActivities:
    """Each answers the row's state after its transaction, for the workflow to adopt; each may safely run again."""

    def __init__(self, database: Database, *, promise_seconds: int) -> None:
        self._database = database
        self._promise_seconds = promise_seconds

    @activity.defn
    async def reserve_order(self, order: NewOrder) -> OrderState:
        """Reserve or reject a new order, or load the one that is there."""
        return await self._transact(lambda connection: orders.reserve(connection, order))

    @activity.defn
    async def confirm_order(self, order_id: str) -> OrderState:
        """Commit the hold and ask for the delivery."""
        return await self._transact(lambda connection: orders.confirm(connection, order_id, self._promise_seconds))

    @activity.defn
    async def extend_order(self, order_id: str, hold_seconds: int) -> OrderState:
        """Move the hold's deadline to that many seconds from now."""
        return await self._transact(lambda connection: orders.extend(connection, order_id, hold_seconds))

    @activity.defn
    async def cancel_order(self, order_id: str) -> OrderState:
        """Give the units back, unless the delivery was picked up."""
        return await self._transact(lambda connection: orders.cancel(connection, order_id))

    @activity.defn
    async def expire_order(self, order_id: str) -> OrderState:
        """End the hold, or answer how long it has left."""
        return await self._transact(lambda connection: orders.expire(connection, order_id))

    @activity.defn
    async def watch_promise(self, order_id: str) -> OrderState:
        """Mark the delivery late, or answer how long its promise has left."""
        return await self._transact(lambda connection: orders.watch_promise(connection, order_id))

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[OrderState]]) -> OrderState:
        try:
            return await self._database.transact(work)
        except orders.OrderMissing as error:
            raise ApplicationError(f"there is no order {error}", type="OrderMissing", non_retryable=True) from error
        except DATABASE_ERRORS as error:
            # PostgreSQL quotes values in its errors; Temporal keeps what it is told, and an order holds an address.
            raise ApplicationError(f"the database refused: {error_code(error)}", type="DatabaseError") from None
