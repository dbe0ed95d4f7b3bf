"""What the stack's children find in their environment, and where they are reached."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from local.leftovers import mark
from local.stack import Tokens
from local.temporal import NAMESPACE, without_temporal
from settings import Settings

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised here, not bound


def child_environment(
    settings: Settings, caller: Mapping[str, str], *, database_url: str, temporal_address: str, tokens: Tokens
) -> dict[str, str]:
    """The environment of migrations, workers and API: the caller's own, with the running stack's values."""
    environment = dict(caller)
    if settings.temporal_address is None:
        # The user's own Temporal settings mean another server. The name tells the clients to ignore its file as well.
        environment = without_temporal(caller)
        environment |= {
            "TEMPORAL_ADDRESS": temporal_address,
            "TEMPORAL_NAMESPACE": NAMESPACE,
            "WAYBILL_TEMPORAL_EMBEDDED": "1",
        }
    # Only the migrations act as the schema's owner.
    environment.pop("WAYBILL_DATABASE_OWNER_URL", None)
    environment |= mark(settings.data_dir)
    environment |= {
        "PYTHONUNBUFFERED": "1",
        "WAYBILL_DATA_DIR": str(settings.data_dir),
        "WAYBILL_DATABASE_URL": database_url,
        "WAYBILL_INSTALLATION": settings.installation,
        "WAYBILL_CLIENT_TOKEN": tokens.client,
        "WAYBILL_COURIER_TOKEN": tokens.courier,
        "WAYBILL_ADMIN_TOKEN": tokens.admin,
    }
    if settings.temporal_ui_url is not None:
        environment["WAYBILL_TEMPORAL_UI_URL"] = settings.temporal_ui_url
    if settings.webhook_allow_private is None and is_loopback(settings.api_host):
        environment["WAYBILL_WEBHOOK_ALLOW_PRIVATE"] = "1"
    return environment


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable_host(host: str) -> str:
    """Where this machine reaches a server that listens on `host`."""
    return _ANY_ADDRESS.get(host, host)


def api_url(settings: Settings) -> str:
    """The API's base URL, without a slash at its end."""
    host = reachable_host(settings.api_host)
    return f"http://[{host}]:{settings.api_port}" if ":" in host else f"http://{host}:{settings.api_port}"
