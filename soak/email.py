"""Worker processes killed with -9 between the sending of an e-mail and its settling, again and again.

`python -m soak.email --kills 40 --orders 400 --seed 1`, on throw-away servers and a mail server of its own. That one
knows when to kill: it has just taken a message, and the worker has not heard so, or has heard it a moment ago.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

from db import ops
from db import order as orders
from db.migrations import migrate
from db.outbox import notifications
from domain.notifications import notification_key
from domain.order import Line, NewOrder, Place
from domain.outbox import SHARDS
from tests.houses import House, open_house
from tests.mailboxes import Mail, Mailbox
from tests.processes import worker_process
from tests.servers import fresh_database, throw_away_directory, throw_away_postgres, throw_away_temporal
from tests.waiting import eventually

MAIL_FROM = "Soak <orders@shop.example>"
_MAILS_AN_ORDER = 2
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Kill:
    """When a worker dies: at so many messages after the last death, before the answer or so long after it."""

    at_mail: int
    seconds_after_answer: float | None
    """None: before the answer."""


def kills_by_chance(count: int, chance: random.Random) -> list[Kill]:
    """A third of them before the answer, the others within the milliseconds in which a worker settles."""
    moments = [None, 0.0, *(number / 1000 for number in range(1, 12, 2))]
    weights = [4, *([1] * (len(moments) - 1))]
    return [Kill(chance.randint(1, 8), moment) for moment in chance.choices(moments, weights, k=count)]


@dataclass
class Soak:
    """One run, and what was seen of it."""

    house: House
    mailbox: Mailbox
    temporal_address: str
    log: Path
    orders: int
    kills: list[Kill]
    seen: Counter[str] = field(default_factory=Counter)
    _arrived: list[tuple[str, int]] = field(default_factory=list)
    """Each message's id, and how many workers had been killed by then."""
    _settled: list[set[str]] = field(default_factory=list)
    """After each kill: ids of what was settled."""
    _since_kill: int = 0
    _due: Kill | None = None
    _process: subprocess.Popen[bytes] | None = None

    async def run(self) -> None:
        """Run to the end and assert everything."""
        await self.house.database.transact(partial(notifications.switch_email, on=True))
        await self._order()
        self.mailbox.accepted = self._accepted
        for kill in self.kills:
            await self._work_until_killed(kill)
        with worker_process(self.house.settings, self.temporal_address, self.log):
            await eventually(self._all_delivered, _PATIENCE_SECONDS)
        await self._end_relays()
        await self._check()

    async def _order(self) -> None:
        """Orders that are confirmed and then cancelled: two e-mails each, and no workflow."""
        await self.house.product("tea", 10 * self.orders)
        for number in range(self.orders):
            order_id = f"o-{number}"
            order = NewOrder(
                order_id=order_id,
                request_hash="",
                customer_id="c-1",
                zone="north",
                lines=[Line("tea", 1)],
                dropoff=Place(52.5, 13.4),
                hold_seconds=900,
                email=f"{order_id}@customer.example",
            )
            await self.house.database.transact(partial(orders.reserve, order=order))
            await self.house.database.transact(partial(orders.confirm, order_id=order_id, promise_seconds=3600))
            await self.house.database.transact(partial(orders.cancel, order_id=order_id))

    async def _accepted(self, mail: Mail) -> None:
        """The mail server has taken a message, and has not said so yet."""
        self._arrived.append((mail.message_id, len(self._settled)))
        self._since_kill += 1
        if self._due is None or self._since_kill < self._due.at_mail:
            return
        kill, self._due = self._due, None
        if kill.seconds_after_answer is None:
            self._kill()
        else:
            asyncio.get_running_loop().call_later(kill.seconds_after_answer, self._kill)

    def _kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)

    async def _work_until_killed(self, kill: Kill) -> None:
        self._since_kill, self._due = 0, kill
        with worker_process(self.house.settings, self.temporal_address, self.log) as self._process:
            process = self._process

            async def dead() -> bool:
                return process.poll() is not None

            await eventually(dead, _PATIENCE_SECONDS)
        assert process.returncode == -signal.SIGKILL
        await self._end_relays()
        await eventually(partial(self._sessions_gone, process.pid))
        settled = await self.house.sql("SELECT message_id FROM notifications WHERE sent_at IS NOT NULL")
        self._settled.append({message_id for (message_id,) in settled})
        lost = {message_id for message_id, _ in self._arrived} - self._settled[-1]
        self.seen["kills"] += 1
        self.seen["kills that lost a settle"] += bool(lost)
        self.seen["kills that left a settled e-mail's message to be delivered"] += await self._settled_and_ready()

    async def _end_relays(self) -> None:
        """Do not wait until Temporal misses the dead worker's heartbeats: the next one starts them again."""
        for shard in range(SHARDS):
            with suppress(RPCError):
                await self.house.temporal.get_workflow_handle(self.house.names.relay(shard)).terminate("killed")

    async def _sessions_gone(self, pid: int) -> bool:
        """Whether PostgreSQL has noticed too: until then a commit may still be under way."""
        sessions = await self.house.sql(
            "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE :name", name=f"%-{pid}-%"
        )
        return sessions == []

    async def _settled_and_ready(self) -> bool:
        """Whether the notification was settled, and the message was not: what only the notification's row knows."""
        [[count]] = await self.house.sql("""
            SELECT count(*) FROM outbox_messages m JOIN outbox_endpoints endpoint USING (endpoint_id)
            JOIN outbox_events e ON e.position = m.event_position JOIN notifications n ON n.event_id = e.event_id
            WHERE endpoint.kind = 'email' AND n.sent_at IS NOT NULL
        """)
        return bool(count)

    async def _all_delivered(self) -> bool:
        [[finished]] = await self.house.sql("""
            SELECT count(*) FROM outbox_finished JOIN outbox_endpoints endpoint USING (endpoint_id)
            WHERE endpoint.kind = 'email' AND status = 'DELIVERED'
        """)
        return bool(finished == _MAILS_AN_ORDER * self.orders)

    # --- what must be true of it

    async def _check(self) -> None:
        rows = await self.house.sql("""
            SELECT CAST(event_id AS text), recipient, message_id, attempts FROM notifications WHERE sent_at IS NOT NULL
        """)
        attempts = {message_id: count for _, _, message_id, count in rows}
        arrived = Counter(message_id for message_id, _ in self._arrived)
        assert len(rows) == len(attempts) == _MAILS_AN_ORDER * self.orders
        assert arrived.keys() == attempts.keys(), "every notification arrived, and nothing else"
        for event_id, recipient, message_id, _ in rows:
            assert message_id == f"<{notification_key(event_id, recipient)}@shop.example>"
        again = [mail for mail, kills in self._arrived if any(mail in settled for settled in self._settled[:kills])]
        assert again == [], "a settled notification was sent again"
        assert [each for each in arrived if arrived[each] > attempts[each]] == []
        for number in range(self.orders):
            got = self.mailbox.mails_once(f"o-{number}@customer.example")
            assert got == ["Your order is confirmed", "Your order was cancelled"]
        async with self.house.database.read() as connection:
            checks = {check.name: check.violations for check in await ops.check_invariants(connection)}
        assert checks["no_duplicate_notifications"] == 0
        self.seen["e-mails due"] = len(rows)
        self.seen["e-mails at the server"] = arrived.total()
        self.seen["e-mails at the server, repeated Message-IDs dropped"] = len(arrived)
        self.seen["attempts whose end nobody saw"] = sum(attempts.values()) - len(rows)


async def soak(
    database_url: str, client: Client, temporal_address: str, log: Path, *, orders: int, kills: Sequence[Kill]
) -> Soak:
    """Run on a migrated, empty database, as the installation `soak-email`; answer the run."""
    async with (
        Mailbox() as mailbox,
        open_house(
            database_url, client, "soak-email", worker=False, smtp_url=mailbox.url, mail_from=MAIL_FROM
        ) as house,
    ):
        run = Soak(house, mailbox, temporal_address, log, orders, list(kills))
        await run.run()
        return run


async def main() -> None:
    """Run as the command line says, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m soak.email", description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--orders", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    kills = kills_by_chance(asked.kills, random.Random(asked.seed))
    with throw_away_directory() as directory, throw_away_postgres() as postgres, throw_away_temporal() as temporal:
        async with fresh_database(postgres, "soak") as url:
            await asyncio.to_thread(migrate, url, "soak-email")
            client = await Client.connect(temporal.address)
            log, began = directory / "worker.log", time.monotonic()
            run = await soak(url, client, temporal.address, log, orders=asked.orders, kills=kills)
    print(f"{asked.kills} kills, {asked.orders} orders, seed {asked.seed}: {time.monotonic() - began:.0f} s")
    print("".join(f"\n  {name:<65}{count:>6,}" for name, count in sorted(run.seen.items())))
    print(
        "\nEvery notification arrived; repeats are of those only whose settle was lost, and carry the same Message-ID."
    )


if __name__ == "__main__":
    asyncio.run(main())
