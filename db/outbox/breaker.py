"""The breaker of an endpoint: opens when the endpoint fails; one probe at a time finds out when it is well again.

Its state is the endpoint's row: open while `open_until` is set, due for a probe from that moment on.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.outbox.relay import StaleEpoch
from domain.outbox import Endpoint, breaker_delay_seconds

DISABLED_AFTER_DAYS = 5
"""An endpoint that has failed for so long is sent nothing more until an admin enables it; the internal one, which no
admin sees, is tried for ever."""

_OPEN = text("""
    UPDATE outbox_endpoints SET open_until = now() + make_interval(secs => :delay_seconds),
        consecutive_failures = consecutive_failures + 1, last_error = :error,
        failing_since = COALESCE(failing_since, now()),
        disabled_reason = CASE WHEN :gone THEN 'it answered 410 Gone'
            WHEN kind <> 'workflow' AND failing_since < now() - make_interval(days => :days)
                THEN 'it has failed for ' || :days || ' days'
            ELSE disabled_reason END
    WHERE endpoint_id = :endpoint_id AND consecutive_failures = :consecutive_failures
""")


async def open_breaker(
    connection: AsyncConnection, endpoint: Endpoint, error: str, *, gone: bool = False, retry_after_seconds: float = 0.0
) -> float:
    """Stop sending to an endpoint for a while, or for good if it is gone; answer for how many seconds.

    Of several relays that saw the same failure, one counts it.
    """
    delay_seconds = max(breaker_delay_seconds(endpoint.consecutive_failures + 1), retry_after_seconds)
    parameters = {
        "endpoint_id": endpoint.endpoint_id,
        "consecutive_failures": endpoint.consecutive_failures,
        "delay_seconds": delay_seconds,
        "error": error,
        "gone": gone,
        "days": DISABLED_AFTER_DAYS,
    }
    await connection.execute(_OPEN, parameters)
    return delay_seconds


# It waits for nobody: whoever has the row at this moment is about to open the breaker, or to close it.
_TAKE_PROBE = text("""
    UPDATE outbox_endpoints SET open_until = clock_timestamp() + make_interval(secs => :lease_seconds)
    WHERE endpoint_id = (SELECT endpoint_id FROM outbox_endpoints WHERE endpoint_id = :endpoint_id
        AND open_until <= clock_timestamp() AND consecutive_failures = :consecutive_failures
        FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING open_until
""")
_PROBE_LEASE_SECONDS = 20.0


async def take_probe(connection: AsyncConnection, endpoint_id: int, consecutive_failures: int) -> datetime | None:
    """Become the one who may try the endpoint now; answer until when. Should it die, another may after that."""
    parameters = {
        "endpoint_id": endpoint_id,
        "consecutive_failures": consecutive_failures,
        "lease_seconds": _PROBE_LEASE_SECONDS,
    }
    until: datetime | None = await connection.scalar(_TAKE_PROBE, parameters)
    return until


# Whoever has opened or closed it since, or taken the next probe, has put another time there.
_CLOSE = text("""
    UPDATE outbox_endpoints SET open_until = NULL, consecutive_failures = 0, last_error = NULL, failing_since = NULL,
        reachable_since = now()
    WHERE endpoint_id = :endpoint_id AND open_until = :probe_until
""")
_FENCE = text("SELECT true FROM outbox_shards WHERE shard = :shard AND epoch = :epoch FOR SHARE")


async def close_breaker(
    connection: AsyncConnection, endpoint_id: int, probe_until: datetime, fence: tuple[int, int] | None = None
) -> bool:
    """The probe that was to last until then passed: send again. Answer whether the endpoint was still that probe's.

    `fence`: a relay's shard and epoch. Raises StaleEpoch where another relay has the shard: it was frozen meanwhile.
    """
    closed = await connection.execute(_CLOSE, {"endpoint_id": endpoint_id, "probe_until": probe_until})
    if fence is not None:
        shard, epoch = fence
        if not await connection.scalar(_FENCE, {"shard": shard, "epoch": epoch}):
            raise StaleEpoch(shard)
    return closed.rowcount > 0
