"""Events, the lanes they travel in, whose fault a failed delivery is, and when to try again."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from domain.ids import new_id

SHARDS = 4
"""Relays of an installation: a small fixed number, so that lanes keep their shard."""

CLOUDEVENTS_CONTENT_TYPE = "application/cloudevents+json"
SOURCE = "/waybill"


class EventType(StrEnum):
    """Every event that Waybill sends."""

    ORDER_RESERVED = "waybill.order.reserved"
    ORDER_CONFIRMED = "waybill.order.confirmed"
    ORDER_EXPIRED = "waybill.order.expired"
    ORDER_CANCELLED = "waybill.order.cancelled"
    ORDER_DELIVERED = "waybill.order.delivered"
    DELIVERY_REQUESTED = "waybill.delivery.requested"
    DELIVERY_OFFERED = "waybill.delivery.offered"
    DELIVERY_ASSIGNED = "waybill.delivery.assigned"
    DELIVERY_PICKED_UP = "waybill.delivery.picked_up"
    DELIVERY_LATE = "waybill.delivery.late"
    DELIVERY_CANCELLED = "waybill.delivery.cancelled"
    INVENTORY_ADJUSTED = "waybill.inventory.adjusted"
    INVENTORY_RECONCILED = "waybill.inventory.reconciled"
    ZONE_WOKEN = "waybill.zone.woken"
    """Internal: tells a zone's dispatch to look again; no webhook receives it."""


class SinkKind(StrEnum):
    """Where an endpoint's messages go."""

    WEBHOOK = "webhook"
    WORKFLOW = "workflow"
    EMAIL = "email"


RESERVED_NAMES = frozenset({SinkKind.WORKFLOW, SinkKind.EMAIL})
"""Endpoints that always stand; no webhook takes their names."""


class MessageStatus(StrEnum):
    """The state of one event for one endpoint."""

    PENDING = "PENDING"
    RETRYING = "RETRYING"
    FAILED = "FAILED"
    DELIVERED = "DELIVERED"
    IGNORED = "IGNORED"


class AttemptOutcome(StrEnum):
    """How an attempt that is not known to have delivered ended."""

    FAILED = "failed"
    """Surely: the receiver itself refused it, or it never got there."""
    IN_DOUBT = "in_doubt"
    """It may have succeeded, whatever error class the fate of other events gave it."""
    INTERRUPTED = "interrupted"
    """Who made it died before the end: it may have succeeded too."""


class ErrorClass(StrEnum):
    """Whose fault a failed delivery is."""

    EVENT = "event"
    ENDPOINT = "endpoint"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Event:
    """Something that happened, written in the transaction in which it happened."""

    event_type: EventType
    subject: str
    """The aggregate's id: order id, delivery id or SKU."""
    lane: str
    """Events of one lane reach an endpoint in the order they happened."""
    data: Mapping[str, Any]
    event_id: str
    outside: bool = False
    """The row changed without its order's workflow, which must be told."""


@dataclass(frozen=True)
class Endpoint:
    """Where messages go: a webhook, the internal `workflow` sink, or e-mail."""

    endpoint_id: int
    name: str
    kind: SinkKind
    url: str | None
    secrets: tuple[str, ...] = field(repr=False)
    """Live signing secrets, the newest first; two while they rotate."""
    consecutive_failures: int
    probing: bool
    """Its breaker is open and due for a probe."""
    probe_until: datetime | None = None
    """It is the bearer's to try, until then."""
    recovering: bool = False
    """It came back a moment ago: it gets its messages by and by, not all at once."""


class Message(NamedTuple):
    """One event for one endpoint, as it is sent."""

    shard: int
    position: int
    event_position: int
    lane: str
    event_id: str
    event_type: str
    subject: str
    payload: str
    """The event's data as JSON text: on its way to a webhook nobody need read it."""
    occurred_at: datetime
    attempts: int
    """Counted attempts that failed before."""
    claimed_at: float
    """By the database's clock, in seconds since 1970."""
    fixes: str | None = None
    """The id of the event in whose place an admin put this one."""

    @property
    def data(self) -> Any:
        """What the payload says."""
        return json.loads(self.payload)

    @property
    def body(self) -> bytes:
        """The event as a CloudEvent."""
        return cloud_event(self.event_id, self.event_type, self.subject, self.occurred_at, self.payload, self.fixes)


def order_event(
    event_type: EventType, subject: str, order_id: str, data: Mapping[str, Any], *, outside: bool = False
) -> Event:
    """An event of an order or of its delivery: both travel in the order's lane, and their data name the order."""
    return Event(event_type, subject, f"order:{order_id}", {"orderId": order_id, **data}, new_id(), outside)


def inventory_event(event_type: EventType, sku: str, data: Mapping[str, Any]) -> Event:
    """An event of a product, in the product's lane."""
    return Event(event_type, sku, f"sku:{sku}", {"sku": sku, **data}, new_id())


def relay_share(workers: int) -> int:
    """How many shards one of so many workers should carry at most."""
    return -(-SHARDS // max(1, workers))


def shard_of(lane: str) -> int:
    """The shard whose relay carries a lane."""
    return zlib.crc32(lane.encode()) % SHARDS


def zone_woken(zone: str) -> Event:
    """Something changed in a zone that its dispatch must see: a courier came free, a delivery is to be given again."""
    return Event(EventType.ZONE_WOKEN, zone, f"zone:{zone}", {"zone": zone}, new_id(), outside=True)


INTERNAL_TYPES = frozenset({EventType.ZONE_WOKEN})
PUBLIC_TYPES = frozenset(EventType) - INTERNAL_TYPES
ZONE_TYPES = frozenset({EventType.DELIVERY_REQUESTED, EventType.ZONE_WOKEN})
"""What the `workflow` sink takes to a zone's dispatch; the rest goes to the order's workflow."""


def wanted_by_workflows(event: Event) -> bool:
    """Whether the internal `workflow` sink receives the event: only what a workflow does not know already."""
    return event.outside or event.event_type in ZONE_TYPES


def message_id(position: int, endpoint_id: int) -> str:
    """The id of a message: its place in the log and its endpoint."""
    return f"{position}-{endpoint_id}"


def parse_message_id(text: str) -> tuple[int, int] | None:
    """The place and the endpoint of a message's id, or None for what cannot be one."""
    position, dash, endpoint = text.partition("-")
    if not dash or not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in (position, endpoint)):
        return None
    if int(endpoint) > 2**31 - 1:
        return None
    return int(position), int(endpoint)


_as_json = json.JSONEncoder(ensure_ascii=False).encode


def cloud_event(
    event_id: str, event_type: str, subject: str, time: datetime, payload: str, fixes: str | None = None
) -> bytes:
    """The event in CloudEvents 1.0 structured JSON mode (cloudevents.io, spec 1.0.2, section 3 of the JSON format).

    `payload` is its data as JSON text. `fixes` is an extension attribute, there only where an admin put the event in
    the place of another one.
    """
    # Put together by hand, for it is done for every message; only the subject may hold anything at all.
    fixed = f'"fixes":"{fixes}",' if fixes else ""
    return (
        f'{{"specversion":"1.0","id":"{event_id}","source":"{SOURCE}","type":"{event_type}",'
        f'"subject":{_as_json(subject)},"time":"{rfc3339(time)}",'
        f'"datacontenttype":"application/json",{fixed}"data":{payload}}}'
    ).encode()


def rfc3339(time: datetime) -> str:
    """A time as the API and the events write it: UTC, microseconds, `Z`."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def new_webhook_secret() -> str:
    """A signing secret in the form of the Standard Webhooks specification (24 random bytes)."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


@lru_cache
def _signing_key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"))


def webhook_signature(secret: str, event_id: str, timestamp: int, body: bytes) -> str:
    """Sign as the Standard Webhooks specification 1.0 says: HMAC-SHA256 over `id.timestamp.body`, prefixed `v1,`."""
    digest = hmac.digest(_signing_key(secret), f"{event_id}.{timestamp}.".encode() + body, "sha256")
    return "v1," + base64.b64encode(digest).decode()


_EVENT_STATUSES = frozenset({400, 413, 422})
_ENDPOINT_STATUSES = frozenset({401, 403, 404, 405, 410})


def blame_of_status(http_status: int) -> ErrorClass | None:
    """Whose fault an HTTP answer shows; None where only other lanes' fate can tell (408, 429, 5xx and the rest)."""
    if http_status in _EVENT_STATUSES:
        return ErrorClass.EVENT
    if http_status in _ENDPOINT_STATUSES:
        return ErrorClass.ENDPOINT
    return None


_EVENT_DELAYS = (3.0, 10.0)
_UNKNOWN_DELAYS = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 285.0)
ENDPOINT_DELAY_CAP_SECONDS = 30.0


def retry_delay_seconds(error_class: ErrorClass, attempts: int, retry_after_seconds: float = 0.0) -> float | None:
    """How long to wait after so many counted attempts; None when the message has FAILED.

    `event`: 3 tries within 20 s. `unknown`: 8 tries over about 10 minutes, later where the receiver asked for that.
    `endpoint`: never FAILED. Chance moves each pause by up to a tenth, so that messages that failed together do not
    come back together.
    """
    if error_class is ErrorClass.ENDPOINT:
        return ENDPOINT_DELAY_CAP_SECONDS
    delays = _EVENT_DELAYS if error_class is ErrorClass.EVENT else _UNKNOWN_DELAYS
    if attempts > len(delays):
        return None
    return max(delays[attempts - 1] * random.uniform(0.9, 1.1), retry_after_seconds)


RETRY_AFTER_CAP_SECONDS = 300.0
"""What a receiver may ask for in `Retry-After`, at most."""


def breaker_delay_seconds(consecutive_failures: int) -> float:
    """How long an endpoint's breaker stays open after so many failures in a row: doubling from 1 s to the cap."""
    return float(min(2.0 ** min(consecutive_failures - 1, 10), ENDPOINT_DELAY_CAP_SECONDS))


FAILURE_WORKFLOWS = 200
"""Failing messages of an installation that have a workflow at a time; the others wait as rows."""

INTERRUPTIONS = 3
"""So many relays in a row that die while sending one message alone, and it counts as failing."""


# --- groups of failures

# A token with a digit in it is an id, a time, an address; an apostrophe inside a word quotes nothing.
_VALUES = re.compile(
    r"""[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12} | "[^"]*(?:"|\Z) | (?<!\w)'[^']*(?:'|\Z) | \w*\d\w*""",
    re.VERBOSE | re.IGNORECASE,
)
_WORDS = re.compile(r"\w+|…")
_HTTP_STATUS = re.compile(r"HTTP \d{3}\b")


def failure_fingerprint(event_type: str, endpoint_id: int, error_class: ErrorClass, error: str) -> str:
    """The same for messages that failed in the same way: only the error's HTTP status and its words make a difference.

    Ids, digits, quoted values and how many of them there are do not; an error may also be cut off anywhere.
    """
    status = _HTTP_STATUS.match(error)
    told = status[0] if status else ""
    words = _WORDS.findall(_VALUES.sub(" … ", error[len(told) :]))
    shape = [word for word, before in zip(words, ["", *words], strict=False) if not word == before == "…"]
    parts = (event_type, str(endpoint_id), error_class, told, *shape)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# --- fixes

_IDENTITY = ("orderId", "deliveryId", "sku")
_CARRIED = (*_IDENTITY, "status", "customerId", "zone", "lines")
PAYLOAD_BYTES = 64 * 1024


def payload_problem(original: Mapping[str, Any], fixed: Mapping[str, Any]) -> str | None:
    """Why a payload cannot take the place of an event's own, in one sentence; None when it can.

    Receivers rely on what such events always carry, and what the event is about cannot change.
    """
    for name in _CARRIED:
        if name not in original:
            continue
        if name not in fixed:
            return f"The payload lacks {name!r}, which such events always carry."
        if type(fixed[name]) is not type(original[name]):
            return f"{name!r} is of another type than in the event."
        if name in _IDENTITY and fixed[name] != original[name]:
            return f"{name!r} says what the event is about and cannot change."
    if len(json.dumps(fixed).encode()) > PAYLOAD_BYTES:
        return f"The payload is larger than {PAYLOAD_BYTES // 1024} KiB."
    return None


# --- bulk operations


class ReplayAction(StrEnum):
    """What a bulk operation does with failed messages."""

    REPLAY = "replay"
    IGNORE = "ignore"


class ReplayStatus(StrEnum):
    """FAILED: it could not be started; another one may be asked for."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DONE = "DONE"
    FAILED = "FAILED"


@dataclass(frozen=True)
class ReplayProgress:
    """How far a bulk operation is."""

    status: ReplayStatus
    count: int
    """Messages that were FAILED, and chosen, when it was asked for."""
    done: int
    skipped: int
    """Decided otherwise before it was their turn."""
    waits_for: list[str] = field(default_factory=list)
    """RUNNING: nothing could be done now, because these endpoints cannot be sent to."""
