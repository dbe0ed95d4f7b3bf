"""The outbox as a relay and an admin use it, one call a transaction. All events are of lanes that share one shard."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from db.outbox import decisions, endpoints, lanes, relay, settle
from db.outbox.relay import Claimed
from db.outbox.settle import Delivered
from db.outbox.write import write_events
from domain.outbox import ErrorClass, EventType, Message, MessageStatus, order_event, shard_of
from tests.db.shops import Shop

SHARD = 2
LANES = list(itertools.islice((f"o-{n}" for n in itertools.count() if shard_of(f"order:o-{n}") == SHARD), 6))
"""Orders whose lanes the same relay carries."""
A, B, C = LANES[:3]


@dataclass(frozen=True)
class Outbox:
    """One outbox, seen from one of its endpoints."""

    shop: Shop
    endpoint_id: int

    async def webhook(
        self,
        name: str,
        event_types: list[str] | None = None,
        *,
        unordered_types: Sequence[str] = (),
        enabled: bool = True,
    ) -> int:
        """Make (or change) a webhook; answer its endpoint's id."""
        wish = endpoints.WebhookWish(f"https://{name}.example/events", event_types, list(unordered_types), enabled)
        await self.shop.database.transact(
            lambda c: endpoints.put_webhook(c, name, wish, f"whsec_{name}", actor="admin", reason=None)
        )
        move = await self.shop.database.transact(lambda c: lanes.begin_move(c, name))
        while move is not None:
            move = await self.shop.database.transact(partial(lanes.move_some, move=move))
        return int(await self.shop.value("SELECT endpoint_id FROM outbox_endpoints WHERE name = :name", name=name))

    async def happen(self, order_id: str, *types: str, outside: bool = False) -> list[int]:
        """Write events of an order; answer their positions."""
        written = [
            order_event(EventType(f"waybill.{each}"), order_id, order_id, {"status": "RESERVED"}, outside=outside)
            for each in types
        ]
        await self.shop.database.transact(lambda connection: write_events(connection, written))
        rows = await self.shop.sql(
            "SELECT position FROM outbox_events WHERE event_id = ANY(CAST(:ids AS uuid[])) ORDER BY position",
            ids=[each.event_id for each in written],
        )
        return [position for (position,) in rows]

    async def take(self, owner: str = "worker-1") -> int:
        """Become the relay; answer the epoch."""
        return await self.shop.database.transact(lambda connection: relay.take_shard(connection, SHARD, owner))

    async def claim(self, epoch: int, in_flight: Sequence[int] = (), limit: int = 200) -> list[Claimed]:
        """Claim what is ready."""
        return await self.shop.database.transact(
            lambda connection: relay.claim(
                connection, SHARD, self.endpoint_id, epoch, relay.Window(in_flight, limit=limit)
            )
        )

    async def settle(self, epoch: int, claimed: Sequence[Claimed]) -> None:
        """They were delivered."""
        delivered = [Delivered(each, 12.5) for each in claimed]
        await self.shop.database.transact(
            lambda connection: settle.settle(connection, SHARD, self.endpoint_id, epoch, delivered)
        )

    async def fail(
        self,
        epoch: int,
        claimed: Claimed,
        *,
        error_class: ErrorClass = ErrorClass.EVENT,
        delay_seconds: float | None = 0.0,
        error: str = "HTTP 400 'no'",
        in_doubt: bool = False,
    ) -> None:
        """It failed for a reason of its own: RETRYING, or FAILED without a delay."""
        await self.shop.database.transact(
            lambda c: settle.fail(
                c,
                self.endpoint_id,
                epoch,
                claimed.message,
                error_class,
                error,
                delay_seconds,
                in_doubt=in_doubt,
            )
        )

    async def park(self, messages: Sequence[Message]) -> None:
        """Put them aside if their lane is blocked."""
        await self.shop.database.transact(lambda connection: settle.park(connection, SHARD, self.endpoint_id, messages))

    async def replay(self, position: int) -> MessageStatus:
        """An admin has it sent again."""
        return await self.shop.database.transact(
            lambda c: decisions.replay(c, position, self.endpoint_id, actor="admin", reason="mended")
        )

    async def ignore(self, position: int) -> MessageStatus:
        """An admin gives it up."""
        return await self.shop.database.transact(
            lambda c: decisions.ignore(c, position, self.endpoint_id, actor="admin", reason="useless")
        )

    async def blocked(self, order_id: str, *types: str) -> tuple[int, list[int], list[int]]:
        """A lane whose first event FAILED, the others parked: the epoch, and the positions of both."""
        positions = await self.happen(order_id, *types)
        epoch = await self.take()
        claimed = [each for each in await self.claim(epoch) if each.message.position in positions]
        await self.fail(epoch, claimed[0], delay_seconds=None)
        await self.park([each.message for each in claimed[1:]])
        return epoch, positions[:1], positions[1:]

    async def places(self, positions: Sequence[int]) -> list[str]:
        """Where each message is. In exactly one place at a time; a failure's row also tells how it ended."""
        rows = await self.shop.sql(
            """
            SELECT m.position, 'ready' FROM outbox_messages m WHERE m.endpoint_id = :endpoint
            UNION ALL SELECT position, 'parked' FROM outbox_parked WHERE endpoint_id = :endpoint
            UNION ALL SELECT position, status FROM outbox_failures
                WHERE endpoint_id = :endpoint AND status IN ('RETRYING', 'FAILED')
            UNION ALL SELECT position, status FROM outbox_finished WHERE endpoint_id = :endpoint
            """,
            endpoint=self.endpoint_id,
        )
        found: dict[int, str] = {}
        for position, place in rows:
            assert position not in found, f"{position} is {place} and {found[position]}"
            found[position] = place
        return [found.get(position, "nowhere") for position in positions]

    async def dispatched(self) -> int:
        """How many messages were delivered, by the counter."""
        return int(await self.shop.value("SELECT sum(dispatched) FROM outbox_shards"))


async def failing(outbox: Outbox, order_id: str = A, *, delay_seconds: float | None = 0.0) -> int:
    """A message that failed once: RETRYING, due after the delay; FAILED without one."""
    (position,) = await outbox.happen(order_id, "order.reserved")
    epoch = await outbox.take()
    (claimed,) = [each for each in await outbox.claim(epoch) if each.message.position == position]
    await outbox.fail(epoch, claimed, delay_seconds=delay_seconds)
    return position
