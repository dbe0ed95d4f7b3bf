"""One endpoint's stream in one shard: lanes in parallel, each lane in order, settled in batches."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import DATABASE_ERRORS, Database
from db.outbox import breaker, probes, relay, settle
from db.outbox.relay import Claimed
from db.outbox.settle import SUSPECT_LANES, Delivered
from domain.outbox import Endpoint, ErrorClass, Message, retry_delay_seconds
from sinks import SendFailed, Sink, deliver

log = structlog.get_logger(__name__)

EVIDENCE_SECONDS = 10.0
"""A failure that may be anybody's is the event's when another lane's event passed there within this time, or since the
event's last failure there."""
WINDOW = (200, 1000)
"""Messages of one endpoint and shard that are claimed at a time: the second where they go fast."""
_FAST_SECONDS = 0.3
"""So long at most between two claims, and the window grows."""
_PARALLEL_SENDS = 64
_LANE_WINDOW = (2, 16)
"""Of one lane, so that a long one leaves room for the others: the second where they go fast."""
_LOOK_AHEAD = (1000, 16_000)
"""Among how many of the oldest messages to look: from the first, doubling while few of them may go, to the second."""
_FILL_SECONDS = 0.05
"""A send that takes longer does not keep the lanes that have become ready meanwhile waiting."""
_VAIN_CLAIMS = 4
"""A claim that brings little is not repeated, unless there is news, before so many times as long as it took."""
_GATHER_SECONDS = (0.01, 0.1)
"""While others are being sent, what is delivered waits for company (one settlement for many): the first at least, and
the second at most while the senders are busy."""
_COMPANY = 200


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
        self._unsent = 0
        """How many of these there are."""
        self._ready: deque[str] = deque()
        """Lanes whose messages nobody is sending yet."""
        self._senders: set[asyncio.Task[None]] = set()
        # One that came back a moment ago is sent one message at a time, and one more for each that it takes.
        self._allowed = 1 if endpoint.recovering else _PARALLEL_SENDS
        self._outcomes: list[Delivered | _Failed] = []
        self._news = asyncio.Event()
        """Something has an outcome, or may have become ready."""
        self._undecided: list[_Failed] = []
        self._passed: dict[str, float] = {}
        """When something passed, for the last two lanes of which something did."""
        self._suspect: set[str] = set()
        """Lanes that failed in doubt since anything passed."""
        self._broken: _Failed | None = None
        self._look_ahead = _LOOK_AHEAD[0]
        self._window = WINDOW[0]
        self._claimed_at = 0.0
        """When a claim brought something."""
        self._claim_again_at = 0.0
        self._told = False
        """Something new may have become ready since the last claim began."""

    def stop(self) -> None:
        """Claim and begin no more; what is being sent ends and is settled."""
        self._stopped = True

    def look(self) -> None:
        """Something new may be ready: do not wait for a send to end."""
        self._claim_again_at = 0.0
        self._told = True
        self._news.set()

    async def run(self) -> None:
        """Pump. Raises StaleEpoch when another relay has the shard."""
        if self.endpoint.probing:
            await self._probe()
        else:
            await self._stream()
        await self._let_go()

    async def _stream(self) -> None:
        try:
            await self._fill()
            while self._senders or self._outcomes:
                await self._end(await self._next_outcomes())
                await self._judge()
                await self._fill()
        except DATABASE_ERRORS:
            # What was delivered meanwhile is not to be sent again for that.
            if delivered := [each for each in self._outcomes if isinstance(each, Delivered)]:
                with contextlib.suppress(*DATABASE_ERRORS):
                    await self._settle(delivered)
            raise
        finally:
            for sender in self._senders:
                sender.cancel()
        if self._broken:
            await self._open_breaker(self._broken)

    # --- claiming and sending

    async def _fill(self) -> None:
        """Claim more when little is left to send, and set lanes going."""
        if self._broken or self._stopped:
            return
        if self._runs_low():
            for claimed in await self._claim(self._window - len(self._in_flight)):
                self._in_flight[claimed.message.position] = claimed
                self._unsent += 1
                lane = claimed.message.lane
                if lane in self._queued:
                    self._queued[lane].append(claimed)
                else:
                    self._queued[lane] = deque([claimed])
                    self._ready.append(lane)
            if self.endpoint.recovering:
                # The oldest lanes may be those whose events fail: one after the other they would break it off again.
                random.shuffle(self._ready)
        for _ in range(min(len(self._ready), self._allowed - len(self._senders))):
            self._senders.add(asyncio.create_task(self._send_lanes()))

    def _runs_low(self) -> bool:
        """Whether the senders will soon have nothing to do, and a claim may bring enough to be worth its while.

        Where some have nothing to do already, whatever it brings is: all that was claimed may wait behind a few slow
        lanes.
        """
        if self._in_flight and time.monotonic() < self._claim_again_at:
            return False
        if not self._ready and len(self._senders) < self._allowed:
            return len(self._in_flight) < self._window
        return self._unsent <= self._window // 4 and len(self._in_flight) <= 3 * self._window // 4

    async def _claim(self, limit: int) -> list[Claimed]:
        """Claim rows; those behind a failing message of their lane are parked instead."""
        self._told, began = False, time.monotonic()
        fast = began - self._claimed_at < _FAST_SECONDS
        self._window = min(self._window * 2, WINDOW[1]) if fast else WINDOW[0]
        lane_limit = _LANE_WINDOW[fast]
        lanes = Counter(claimed.message.lane for claimed in self._in_flight.values())
        window = relay.Window(
            in_flight=list(self._in_flight),
            full_lanes=[lane for lane, count in lanes.items() if count >= lane_limit],
            lane_limit=lane_limit,
            limit=limit,
            look_ahead=self._look_ahead,
        )
        claimed = await self._database.execute_once(
            lambda connection: relay.claim(connection, self._shard, self.endpoint.endpoint_id, self._epoch, window)
        )
        ended = time.monotonic()
        few = len(claimed) < limit // 2
        self._look_ahead = min(self._look_ahead * 2, _LOOK_AHEAD[1]) if few else _LOOK_AHEAD[0]
        pause = max(_FILL_SECONDS, _VAIN_CLAIMS * (ended - began))
        self._claim_again_at = ended + pause if few and not self._told else 0.0
        if claimed:
            self._claimed_at = began
        blocked = [each.message for each in claimed if each.lane_blocked]
        if blocked:
            await self._database.transact(
                lambda connection: settle.park(connection, self._shard, self.endpoint.endpoint_id, blocked)
            )
        return [each for each in claimed if not each.lane_blocked]

    async def _send_lanes(self) -> None:
        """Send from one lane after the other: one message each, so that few run dry before there are more."""
        while self._ready and not self._broken and not self._stopped:
            lane = self._ready.popleft()
            queue = self._queued[lane]
            self._unsent -= 1
            outcome = await self._send(queue.popleft())
            self._outcomes.append(outcome)
            self._news.set()
            if isinstance(outcome, _Failed):
                continue  # the lane waits for the verdict
            if queue:
                self._ready.append(lane)
            else:
                del self._queued[lane]
        self._senders.discard(asyncio.current_task())
        self._news.set()

    async def _send(self, claimed: Claimed) -> Delivered | _Failed:
        began = time.monotonic()
        try:
            await deliver(self._sink, self.endpoint, claimed.message)
        except SendFailed as error:
            return _Failed(claimed, error)
        return Delivered(claimed, (time.monotonic() - began) * 1000)

    async def _next_outcomes(self) -> list[Delivered | _Failed]:
        """Wait for an outcome, but not long, and take all that are there: under load, a batch."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FILL_SECONDS):
                await self._news.wait()
        began = time.monotonic()
        while self._senders and len(self._outcomes) < _COMPANY:
            await asyncio.sleep(_GATHER_SECONDS[0])
            idle = not self._ready and len(self._senders) < _PARALLEL_SENDS // 2
            if idle or time.monotonic() - began > _GATHER_SECONDS[1]:
                break
            await self._fill()
        self._news.clear()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    # --- ending

    async def _end(self, outcomes: list[Delivered | _Failed]) -> None:
        """Settle what was delivered; take up what failed, in the order in which it came."""
        delivered = [outcome for outcome in outcomes if isinstance(outcome, Delivered)]
        if delivered:
            await self._settle(delivered)
        for outcome in outcomes:
            if isinstance(outcome, Delivered):
                await self._blame_events(outcome.claimed.message.lane)
            elif outcome.error.blame is ErrorClass.ENDPOINT:
                self._broken = self._broken or outcome
            elif outcome.error.blame is ErrorClass.EVENT:
                await self._fail(outcome, ErrorClass.EVENT)
            else:
                self._suspect.add(outcome.claimed.message.lane)
                self._undecided.append(outcome)

    async def _blame_events(self, passed_lane: str) -> None:
        """A lane passed: what failed in doubt before it, in other lanes, did so for reasons of its own."""
        self._suspect.clear()
        waiting, self._undecided = self._undecided, []
        for failed in waiting:
            if failed.claimed.message.lane == passed_lane:
                self._undecided.append(failed)
            else:
                await self._fail(failed, ErrorClass.UNKNOWN)

    async def _settle(self, delivered: list[Delivered]) -> None:
        await self._database.execute_once(
            lambda connection: settle.settle(connection, self._shard, self.endpoint.endpoint_id, self._epoch, delivered)
        )
        self._allowed = min(self._allowed + len(delivered), _PARALLEL_SENDS)
        for each in delivered:
            del self._in_flight[each.claimed.message.position]
        # Two lanes are enough: one of them is another than the one that is asked about.
        now = time.monotonic()
        passed = dict.fromkeys((each.claimed.message.lane for each in reversed(delivered)), now) | self._passed
        self._passed = dict(list(passed.items())[:2])

    async def _judge(self) -> None:
        """Decide whose fault the doubtful failures are that no other lane has passed since.

        While lanes are under way, they will tell. After them only what passed before, here or at other shards' relays,
        is left to ask.
        """
        if not self._undecided:
            return
        if len(self._suspect) >= SUSPECT_LANES:
            await self._judge_again()
        if len(self._suspect) >= SUSPECT_LANES:
            self._broken = self._broken or self._undecided[0]
        if self._broken or self._senders or self._outcomes:
            return
        waiting, self._undecided = self._undecided, []
        for decided, failed in enumerate(waiting):
            message = failed.claimed.message
            alike = len(self._undecided) + len(waiting) - decided
            if self._passed_elsewhere(message.lane) or await self._others_pass(message, EVIDENCE_SECONDS, alike):
                await self._fail(failed, ErrorClass.UNKNOWN)
            else:
                self._undecided.append(failed)
                self._broken = self._broken or failed

    async def _judge_again(self) -> None:
        """Of many that fail alike, take out those that have failed before, and others passed between, just now."""
        waiting, self._undecided = self._undecided, []
        for failed in waiting:
            if await self._others_pass(failed.claimed.message, 0.0, SUSPECT_LANES):
                self._suspect.discard(failed.claimed.message.lane)
                await self._fail(failed, ErrorClass.UNKNOWN)
            else:
                self._undecided.append(failed)

    async def _others_pass(self, message: Message, seconds: float, alike: int) -> bool:
        ask = partial(settle.others_pass, message=message, seconds=seconds, alike=alike)
        return await self._database.execute_once(partial(ask, endpoint_id=self.endpoint.endpoint_id))

    def _passed_elsewhere(self, lane: str) -> bool:
        now = time.monotonic()
        return any(passed != lane and now - at < EVIDENCE_SECONDS for passed, at in self._passed.items())

    async def _fail(self, failed: _Failed, error_class: ErrorClass) -> None:
        """Take a message that failed for a reason of its own out of the way, and park what was claimed behind it."""
        message = failed.claimed.message
        endpoint_id = self.endpoint.endpoint_id
        delay_seconds = retry_delay_seconds(error_class, message.attempts + 1, failed.error.retry_after_seconds)
        behind = [claimed.message for claimed in self._queued.pop(message.lane, ())]
        self._unsent -= len(behind)

        async def work(connection: AsyncConnection) -> None:
            await settle.fail(
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
                await settle.park(connection, self._shard, endpoint_id, behind)

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
        """Try one message of an endpoint whose breaker is open, lane after lane: the oldest may all be poisoned."""
        endpoint_id = self.endpoint.endpoint_id
        begin = partial(probes.begin_probe, shard=self._shard, endpoint=self.endpoint, epoch=self._epoch)
        until = None
        while until is None:
            probe = await self._database.transact(begin)
            if probe is None:
                return
            choice, until = probe.claimed, probe.until
            if until is None and self._stopped:
                return
        self._in_flight[choice.message.position] = choice
        outcome = await self._send(choice)
        if isinstance(outcome, _Failed) and outcome.error.blame is not ErrorClass.EVENT:
            await self._open_breaker(outcome)
            return
        close = partial(breaker.close_breaker, endpoint_id=endpoint_id, probe_until=until)
        closed = await self._database.transact(partial(close, fence=(self._shard, self._epoch)))
        await self._end([outcome])
        if closed:
            log.info("endpoint answers again", endpoint=self.endpoint.name)

    async def _let_go(self) -> None:
        """Nothing is being sent any more. Doubtful attempts without a verdict are logged: they may have arrived."""
        if not self._broken:
            for each in self._undecided:
                await self._database.transact(partial(self._log_attempt, failed=each, error_class=ErrorClass.UNKNOWN))
        endpoint_id = self.endpoint.endpoint_id
        await self._database.execute_once(
            lambda connection: relay.drop_claim(connection, self._shard, endpoint_id, self._epoch)
        )

    async def _log_attempt(self, connection: AsyncConnection, failed: _Failed, error_class: ErrorClass) -> None:
        error, endpoint_id = failed.error, self.endpoint.endpoint_id
        await settle.log_attempt(
            connection, endpoint_id, failed.claimed.message, error_class, error.full, in_doubt=error.in_doubt
        )

    async def _open_breaker(self, failed: _Failed) -> None:
        """Leave the endpoint's rows where they are, for a while. Attempts are logged, nobody's is counted."""
        endpoint, error = self.endpoint, failed.error

        async def work(connection: AsyncConnection) -> float:
            seconds = await breaker.open_breaker(
                connection, endpoint, error.full, gone=error.gone, retry_after_seconds=error.retry_after_seconds
            )
            await settle.count_error(connection, self._shard, self._epoch, ErrorClass.ENDPOINT)
            for each in {failed, *self._undecided}:
                await self._log_attempt(connection, each, ErrorClass.ENDPOINT)
            return seconds

        delay_seconds = await self._database.transact(work)
        log.warning("endpoint fails", endpoint=endpoint.name, seconds=delay_seconds, error=error.detail)
