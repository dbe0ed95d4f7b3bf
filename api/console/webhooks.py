"""Webhooks: which are sent to, which are not and why, and sending to one again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import webhooks
from api.console.pages import form_body, page, said
from api.console.paging import ShortPage
from api.models import Reasoned
from api.services import ServicesDep
from db.outbox import endpoints

router = APIRouter()


@router.get("/console/webhooks")
async def list_webhooks(
    request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()]
) -> Response:
    """Every webhook with its breaker, and what keeps e-mails from the mail server."""
    found = await webhooks.list_webhooks(services, short_page)
    async with services.database.read() as connection:
        mail_server = await endpoints.get_mail_server(connection)
    return page(request, "webhooks.html", **found, mail_server=mail_server)


@router.post("/console/webhooks/{name}/enable")
async def enable(name: str, request: Request, services: ServicesDep) -> Response:
    """Send to it again, at once."""
    await webhooks.enable_webhook(name, request, services, await form_body(request, Reasoned))
    return said(request, f"{name} is sent to again.", "/console/webhooks")
