"""Orders: found by what somebody has in hand, and each one's story."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from api import assignment, order
from api.auth import Role
from api.console.pages import choice, is_htmx, page
from api.console.paging import ShortPage
from api.models import aware_time
from api.services import Services, ServicesDep
from db import order as orders
from db.assignment import deliveries
from domain.ids import order_id as derive_order_id
from domain.order import OrderStatus

router = APIRouter()


@router.get("/console/orders")
async def list_orders(
    request: Request,
    services: ServicesDep,
    short_page: Annotated[ShortPage, Depends()],
    status: str = "",
    customer: Annotated[str, Query(max_length=255)] = "",
    find: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    """The newest orders, those of a customer or in a status; or on to the one that `find` names."""
    find = "" if is_htmx(request) else find.strip()  # news are of the list; whoever searched has been answered
    async with services.database.read() as connection:
        if find and (found := await _find(connection, services, find)):
            return RedirectResponse(f"/console/orders/{found}", 303)
        after = short_page.after(aware_time, str)
        chosen = choice(OrderStatus, status)
        rows = await orders.list_orders(
            connection, chosen, (after[0], after[1]) if after else None, short_page.limit + 1, customer.strip() or None
        )
    listed = short_page.answer(
        rows,
        lambda row: {**order.show_order(services, row), "createdAt": row.created_at.isoformat()},
        lambda row: (row.created_at, row.order_id),
    )
    return page(
        request,
        "orders.html",
        404 if find else 200,
        **listed,
        find=find,
        status=status,
        customer=customer,
        statuses=list(OrderStatus),
    )


async def _find(connection: AsyncConnection, services: Services, text: str) -> str | None:
    """The order of an order's, a delivery's or a workflow's id, or of the Idempotency-Key that a client sent."""
    candidates = (
        text,
        text.removeprefix(services.names.order("")),
        derive_order_id(Role.CLIENT, text),
        derive_order_id(Role.ADMIN, text),
    )
    for candidate in dict.fromkeys(candidates):
        if await orders.get_order(connection, candidate) is not None:
            return candidate
    delivery = await deliveries.get_delivery(connection, text)
    return str(delivery.order_id) if delivery is not None else None


@router.get("/console/orders/{order_id}")
async def show_order(order_id: str, request: Request, services: ServicesDep) -> Response:
    """An order, its delivery and their timeline."""
    found = await order.get_order(order_id, services)
    delivery = await assignment.get_delivery(found["deliveryId"], services) if found["deliveryId"] else None
    statuses = await services.workflow_statuses([found["workflow"]["id"]])
    workflow = {**found["workflow"], "status": statuses[found["workflow"]["id"]]}
    return page(
        request, "order.html", order=found, delivery=delivery, workflow=workflow, timeline=_timeline(found, delivery)
    )


def _timeline(order: dict[str, Any], delivery: dict[str, Any] | None) -> list[dict[str, str]]:
    """What happened to both, in its order."""
    steps = [{**step, "of": "order"} for step in order["timeline"]]
    if delivery is not None:
        steps += [{**step, "of": "delivery"} for step in delivery["timeline"]]
    return sorted(steps, key=lambda step: step["at"])
