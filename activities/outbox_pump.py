"""One endpoint's stream in one shard: lanes in parallel, each lane in order, settled in batches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from dataclasses import dataclass

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import Database
from db.outbox import breaker, relay
from db.outbox.relay import Claimed, Delivered
from domain.outbox import Endpoint, ErrorClass, retry_delay_seconds
from sinks import SendFailed, Sink, deliver

log = structlog.get_logger(__name__)

EVIDENCE_SECONDS = 10.0
"""A failure that may be anybody's is the event's when another lane's event passed there within this time."""
SUSPECT_LANES = 5
"""So many lanes failing one after the other, and nothing passing between, are the endpoint's fault all the same."""
WINDOW = 200
"""Messages of one endpoint and shard that are claimed at a time."""
_PARALLEL_SENDS = 64
_LANE_WINDOW = 8
"""Of one lane: a long one leaves room for the others."""
_LOOK_AHEAD = (500, 16_000)
"""Among how many of the oldest messages to look: from the first, doubling while few of them may go, to the second."""
_PROBE_CHOICE = 20
_FILL_SECONDS = 0.05
"""A send that takes longer does not keep the lanes that have become ready meanwhile waiting."""
_GATHER_SECONDS = 0.01
"""While others are being sent, what is delivered waits so long for company: one settlement for many."""
_COMPANY = WINDOW // 4


@dataclass(frozen=True, eq=False)
class _Failed:
    claimed: Claimed
    error: SendFailed


class Pump:
    """Sends what is ready until nothing is left, the endpoint breaks, or it is told to stop.

    Lanes are tasks; everything that touches the rows happens in `run`, one step after the other.
    """

    def __init__(self, database: Database, sink: Sink, endpoint: Endpoint, shard: int, epoch: int) -> None:
        self._database = database
        self._sink = sink
        self.endpoint = endpoint
        """As it is now: whoever watches the endpoints puts the newest here."""
        self._shard = shard
        self._epoch = epoch
        self._stopped = False
        self._in_flight: dict[int, Claimed] = {}
        """By position: claimed and not yet settled or given back."""
        self._queued: dict[str, deque[Claimed]] = {}
        """By lane: claimed and not yet sent. A lane is here while its task runs or its failure waits for a verdict."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: asyncio.Queue[Delivered | _Failed | None] = asyncio.Queue()
        # One that came back a moment ago is sent one message at a time, and one more for each that it takes.
        self._allowed = 1 if endpoint.recovering else _PARALLEL_SENDS
        self._sending = asyncio.Semaphore(self._allowed)
        self._undecided: list[_Failed] = []
        self._passed: dict[str, float] = {}
        """When something passed, for the last two lanes of which something did."""
        self._suspect: set[str] = set()
        """Lanes that failed in doubt since anything passed."""
        self._broken: _Failed | None = None
        self._look_ahead = _LOOK_AHEAD[0]

    def stop(self) -> None:
        """Claim and begin no more; what is being sent ends and is settled."""
        self._stopped = True

    def look(self) -> None:
        """Something new may be ready: do not wait for a send to end."""
        self._outcomes.put_nowait(None)

    async def run(self) -> None:
        """Pump. Raises StaleEpoch when another relay has the shard."""
        if self.endpoint.probing:
            await self._probe()
        else:
            await self._stream()
        await self._database.transact(self._let_go)

    async def _stream(self) -> None:
        try:
            await self._fill()
            while self._tasks or not self._outcomes.empty():
                await self._end(await self._next_outcomes())
                await self._judge()
                await self._fill()
        finally:
            for task in self._tasks:
                task.cancel()
        if self._broken:
            await self._open_breaker(self._broken)

    # --- claiming and sending

    async def _fill(self) -> None:
        """Claim more when the window has room, and set lanes going."""
        if self._broken or self._stopped or len(self._in_flight) > WINDOW // 2:
            return
        for claimed in await self._claim(WINDOW - len(self._in_flight)):
            self._in_flight[claimed.message.position] = claimed
            lane = claimed.message.lane
            if lane in self._queued:
                self._queued[lane].append(claimed)
            else:
                self._queued[lane] = deque([claimed])
                self._tasks.add(asyncio.create_task(self._send_lane(lane)))

    async def _claim(self, limit: int) -> list[Claimed]:
        """Claim rows; those behind a failing message of their lane are parked instead."""
        lanes = Counter(claimed.message.lane for claimed in self._in_flight.values())
        window = relay.Window(
            in_flight=list(self._in_flight),
            full_lanes=[lane for lane, count in lanes.items() if count >= _LANE_WINDOW],
            lane_limit=_LANE_WINDOW,
            limit=limit,
            look_ahead=self._look_ahead,
        )
        claimed = await self._database.execute_once(
            lambda connection: relay.claim(connection, self._shard, self.endpoint.endpoint_id, self._epoch, window)
        )
        few = len(claimed) < limit // 2
        self._look_ahead = min(self._look_ahead * 2, _LOOK_AHEAD[1]) if few else _LOOK_AHEAD[0]
        blocked = [each.message for each in claimed if each.lane_blocked]
        if blocked:
            await self._database.transact(
                lambda connection: relay.park(connection, self._shard, self.endpoint.endpoint_id, blocked)
            )
        return [each for each in claimed if not each.lane_blocked]

    async def _send_lane(self, lane: str) -> None:
        """Send a lane's messages one after the other, until one fails."""
        queue = self._queued[lane]
        outcome: Delivered | _Failed | None = None
        while queue and not isinstance(outcome, _Failed) and not self._broken and not self._stopped:
            async with self._sending:
                outcome = await self._send(queue.popleft())
            self._outcomes.put_nowait(outcome)
        if not queue and not isinstance(outcome, _Failed):
            del self._queued[lane]
        self._tasks.discard(asyncio.current_task())
        self._outcomes.put_nowait(None)

    async def _send(self, claimed: Claimed) -> Delivered | _Failed:
        began = time.monotonic()
        try:
            await deliver(self._sink, self.endpoint, claimed.message)
        except SendFailed as error:
            return _Failed(claimed, error)
        return Delivered(claimed, (time.monotonic() - began) * 1000)

    async def _next_outcomes(self) -> list[Delivered | _Failed]:
        """Wait for an outcome, but not long, and take all that are there: under load, a batch."""
        outcomes: list[Delivered | _Failed | None] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FILL_SECONDS):
                outcomes.append(await self._outcomes.get())
        if self._tasks and self._outcomes.qsize() < _COMPANY:
            await asyncio.sleep(_GATHER_SECONDS)
        while not self._outcomes.empty():
            outcomes.append(self._outcomes.get_nowait())
        return [outcome for outcome in outcomes if outcome is not None]

    # --- ending

    async def _end(self, outcomes: list[Delivered | _Failed]) -> None:
        """Settle what was delivered; take up what failed, in the order in which it came."""
        delivered = [outcome for outcome in outcomes if isinstance(outcome, Delivered)]
        if delivered:
            await self._settle(delivered)
        for outcome in outcomes:
            if isinstance(outcome, Delivered):
                self._suspect.clear()
            elif outcome.error.blame is ErrorClass.ENDPOINT:
                self._broken = self._broken or outcome
            elif outcome.error.blame is ErrorClass.EVENT:
                await self._fail(outcome, ErrorClass.EVENT)
            else:
                self._suspect.add(outcome.claimed.message.lane)
                self._undecided.append(outcome)

    async def _settle(self, delivered: list[Delivered]) -> None:
        await self._database.execute_once(
            lambda connection: relay.settle(connection, self._shard, self.endpoint.endpoint_id, self._epoch, delivered)
        )
        for each in delivered:
            if self._allowed < _PARALLEL_SENDS:
                self._allowed += 1
                self._sending.release()
            del self._in_flight[each.claimed.message.position]
            self._passed.pop(each.claimed.message.lane, None)
            self._passed[each.claimed.message.lane] = time.monotonic()
        self._passed = dict(list(self._passed.items())[-2:])

    async def _judge(self) -> None:
        """Decide whose fault the doubtful failures are: the event's while other lanes pass, else the endpoint's."""
        waiting, self._undecided = self._undecided, []
        for failed in waiting:
            if len(self._suspect) >= SUSPECT_LANES or self._broken:
                self._undecided.append(failed)
                self._broken = self._broken or failed
            elif self._passed_elsewhere(failed.claimed.message.lane):
                await self._fail(failed, ErrorClass.UNKNOWN)
            else:
                self._undecided.append(failed)
        # While lanes are under way, they will tell. After them only what other shards saw is left to ask.
        if self._undecided and not self._tasks and self._outcomes.empty() and not self._broken:
            await self._judge_last()

    async def _judge_last(self) -> None:
        waiting, self._undecided = self._undecided, []
        for failed in waiting:
            async with self._database.read() as connection:
                passed = await relay.others_pass(
                    connection, self.endpoint.endpoint_id, failed.claimed.message.lane, EVIDENCE_SECONDS
                )
            if passed:
                await self._fail(failed, ErrorClass.UNKNOWN)
            else:
                self._undecided.append(failed)
                self._broken = self._broken or failed

    def _passed_elsewhere(self, lane: str) -> bool:
        now = time.monotonic()
        return any(passed != lane and now - at < EVIDENCE_SECONDS for passed, at in self._passed.items())

    async def _fail(self, failed: _Failed, error_class: ErrorClass) -> None:
        """Take a message that failed for a reason of its own out of the way, and park what was claimed behind it."""
        message = failed.claimed.message
        endpoint_id = self.endpoint.endpoint_id
        delay_seconds = retry_delay_seconds(error_class, message.attempts + 1, failed.error.retry_after_seconds)
        behind = [claimed.message for claimed in self._queued.pop(message.lane, ())]

        async def work(connection: AsyncConnection) -> None:
            await relay.fail(
                connection,
                endpoint_id,
                self._epoch,
                message,
                error_class,
                failed.error.full,
                delay_seconds,
                in_doubt=failed.error.in_doubt,
            )
            if behind:
                await relay.park(connection, self._shard, endpoint_id, behind)

        await self._database.transact(work)
        for each in (message, *behind):
            del self._in_flight[each.position]
        log.info(
            "message failed",
            event_id=message.event_id,
            endpoint=self.endpoint.name,
            error_class=error_class,
            error=failed.error.detail,
        )

    # --- the breaker

    async def _probe(self) -> None:
        """Try one message of an endpoint whose breaker is open, each time of another lane."""
        first_of_lane: dict[str, Claimed] = {}
        for claimed in await self._claim(_PROBE_CHOICE):
            first_of_lane.setdefault(claimed.message.lane, claimed)
        if not first_of_lane:
            return
        endpoint_id, failures = self.endpoint.endpoint_id, self.endpoint.consecutive_failures
        if not await self._database.execute_once(
            lambda connection: breaker.take_probe(connection, endpoint_id, failures)
        ):
            return  # another shard's relay, or a retry, is trying it
        choice = list(first_of_lane.values())[failures % len(first_of_lane)]
        self._in_flight[choice.message.position] = choice
        outcome = await self._send(choice)
        if isinstance(outcome, _Failed) and outcome.error.blame is not ErrorClass.EVENT:
            await self._open_breaker(outcome)
            return
        await self._database.transact(lambda connection: breaker.close_breaker(connection, endpoint_id))
        await self._end([outcome])
        log.info("endpoint answers again", endpoint=self.endpoint.name)

    async def _let_go(self, connection: AsyncConnection) -> None:
        """Nothing is being sent any more. Doubtful attempts without a verdict are logged: they may have arrived."""
        endpoint_id = self.endpoint.endpoint_id
        await relay.drop_claim(connection, self._shard, endpoint_id, self._epoch)
        if not self._broken:
            for each in self._undecided:
                await self._log_attempt(connection, each, ErrorClass.UNKNOWN)

    async def _log_attempt(self, connection: AsyncConnection, failed: _Failed, error_class: ErrorClass) -> None:
        error, endpoint_id = failed.error, self.endpoint.endpoint_id
        await relay.log_attempt(
            connection, endpoint_id, failed.claimed.message, error_class, error.full, in_doubt=error.in_doubt
        )

    async def _open_breaker(self, failed: _Failed) -> None:
        """Leave the endpoint's rows where they are, for a while. Attempts are logged, nobody's is counted."""
        endpoint, error = self.endpoint, failed.error

        async def work(connection: AsyncConnection) -> float:
            await relay.count_error(connection, self._shard, self._epoch, ErrorClass.ENDPOINT)
            for each in {failed, *self._undecided}:
                await self._log_attempt(connection, each, ErrorClass.ENDPOINT)
            return await breaker.open_breaker(
                connection, endpoint, error.full, gone=error.gone, retry_after_seconds=error.retry_after_seconds
            )

        delay_seconds = await self._database.transact(work)
        log.warning("endpoint fails", endpoint=endpoint.name, seconds=delay_seconds, error=error.detail)
