"""Every event's envelope is what the CloudEvents specification says one is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from domain.outbox import PUBLIC_TYPES, cloud_event

SCHEMA = Draft7Validator(
    json.loads((Path(__file__).parent / "cloudevents.json").read_text()),
    format_checker=Draft7Validator.FORMAT_CHECKER,
)
NOON = datetime(2026, 5, 4, 12, 0, 0, 250_000, tzinfo=UTC)


def envelope(event_type: str, subject: str = "o-1") -> Any:
    """An event as it is sent."""
    data = {"orderId": "o-1", "status": "RESERVED", "name": "Käse 🧀"}
    return json.loads(cloud_event("019a0000-0000-7000-8000-000000000001", event_type, subject, NOON, json.dumps(data)))


def test_the_schema_is_one() -> None:
    Draft7Validator.check_schema(SCHEMA.schema)


@pytest.mark.parametrize("event_type", sorted(PUBLIC_TYPES))
def test_every_event_type_is_sent_as_a_cloudevent(event_type: str) -> None:
    sent = envelope(event_type, "Käse" if "inventory" in event_type else "o-1")
    SCHEMA.validate(sent)
    assert (sent["specversion"], sent["type"], sent["datacontenttype"]) == ("1.0", event_type, "application/json")
    # What the specification says in words: attribute names are lower-case letters and digits, times are RFC 3339.
    assert [name for name in sent if not name.isalnum() or not name.islower()] == []
    assert datetime.fromisoformat(sent["time"]) == NOON


@pytest.mark.parametrize(
    "broken", [{"id": ""}, {"source": 7}, {"specversion": None}, {"type": ""}, {"subject": ""}, {"time": 0}]
)
def test_what_is_no_cloudevent_is_told_from_one(broken: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SCHEMA.validate({**envelope("waybill.order.reserved"), **broken})
