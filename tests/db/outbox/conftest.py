"""An outbox of the test's own, with one webhook."""

from __future__ import annotations

import pytest_asyncio

from tests.db.outbox.outboxes import Outbox
from tests.db.shops import Shop


@pytest_asyncio.fixture
async def outbox(shop: Shop) -> Outbox:
    """An outbox whose webhook `shop` receives everything."""
    return Outbox(shop, await Outbox(shop, 0).webhook("shop"))
