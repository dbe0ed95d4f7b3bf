"""What an admin asks of an order, in the audit.

An order is changed by its workflow's transaction, which does not know who asked, and may run after the caller was told
`order-pending`. So the line is written before Temporal is told, and what came of it is added afterwards: nothing is
done without a line. One without an outcome is of an API that died in between; the order's timeline has the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Request
from sqlalchemy import Row

from api.models import admin, time
from api.problems import Problem
from api.services import Services
from db import order as orders
from db.ops import complete_action, record_action


@asynccontextmanager
async def audited(
    services: Services,
    request: Request,
    action: str,
    order_id: str,
    reason: str | None = None,
    *,
    row: Row[Any] | None = None,
    changes: bool = True,
) -> AsyncIterator[None]:
    """Have what is done within stand in the audit, if an admin asked for it.

    `row`: the order as it was before, where there was one. Without `changes` it is as it was asked for already.
    """
    actor = admin(request)
    if actor is None:
        yield
        return
    before = _told(row)
    after = None if changes else before
    record = partial(record_action, actor=actor, action=f"order.{action}", target=f"order:{order_id}", reason=reason)
    action_id = await services.database.transact(partial(record, before=before, after=after))
    try:
        yield
    except Problem as problem:
        after = {"problem": problem.slug}
        raise
    else:
        async with services.database.read() as connection:
            after = after or _told(await orders.get_order(connection, order_id))
    finally:
        if action_id is not None and after is not None:
            await services.database.transact(partial(complete_action, action_id=action_id, after=after))


def _told(row: Row[Any] | None) -> dict[str, Any] | None:
    return {"status": row.status, "expires_at": time(row.expires_at)} if row is not None else None
