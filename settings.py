"""Everything Waybill reads from its environment, as one frozen object.

The composition roots (`worker.py`, `api/app.py`, `local/`) call `Settings.from_env(os.environ)` once and hand the
values down; nothing else reads the environment. Names and defaults are the README's table.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.policy import SMTP
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_INSTALLATION = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


EX_CONFIG = 78
"""Exit code (sysexits.h) of a process that no restart mends; `make up` then stops and shows the reason."""


class SettingsError(Exception):
    """A variable is missing or malformed; the message is one sentence that names it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The process's configuration. Durations are in seconds; `None` for an address means "embedded"."""

    api_host: str = "127.0.0.1"
    api_port: int = 8000
    temporal_port: int = 7233
    temporal_ui_port: int = 8233
    pg_port: int = 5433
    data_dir: Path = Path(".data")
    database_url: str | None = field(default=None, repr=False)
    """`postgresql://user:password@host:port/database` of an existing PostgreSQL 15+."""
    database_owner_url: str | None = field(default=None, repr=False)
    """The same database as the role that owns the schema; migrations use it. Defaults to `database_url`."""
    temporal_address: str | None = None
    """`host:port` of an existing Temporal; the client's other settings are the SDK's own `TEMPORAL_*` variables."""
    temporal_embedded: bool = False
    """The server is `make up`'s own (which sets this): the user's Temporal config file is not for it."""
    temporal_ui_url: str | None = "http://127.0.0.1:8233"
    """None: an existing Temporal whose UI nobody named, so that links to it are null."""
    installation: str = "waybill"
    workers: int = 1
    worker_metrics_host: str = "127.0.0.1"
    """An IP address, for a Prometheus elsewhere to reach; the SDK's metrics need no token."""
    worker_metrics_port: int = 9100
    client_token: str | None = field(default=None, repr=False)
    courier_token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    webhook_allow_private: bool | None = None
    """None: not said, so off, except under `make up` with the API on loopback."""
    smtp_url: str | None = field(default=None, repr=False)
    """`smtp://` or `smtps://user:password@host:port`; None: e-mail is off."""
    mail_from: str | None = None
    """An address, or a name with an address in angle brackets."""
    retention_days: int = 30
    hold_seconds: int = 900
    promise_seconds: int = 3600
    cross_check_seconds: int = 300
    cross_check_age_seconds: int = 600
    sweep_seconds: int = 60
    sweep_grace_seconds: int = 5

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the variables of the README's table; empty counts as unset. Raises `SettingsError`."""
        ui_port = _integer(env, "WAYBILL_TEMPORAL_UI_PORT", 8233, 1, 65535)
        installation = _text(env, "WAYBILL_INSTALLATION") or "waybill"
        if not _INSTALLATION.fullmatch(installation):
            raise SettingsError(
                f"WAYBILL_INSTALLATION is {installation!r}: it takes 1 to 32 of a-z, 0-9 and '-', not '-' first."
            )
        database_url = _text(env, "WAYBILL_DATABASE_URL")
        embedded_ui = None if _text(env, "TEMPORAL_ADDRESS") else f"http://127.0.0.1:{ui_port}"
        ui_url = _text(env, "WAYBILL_TEMPORAL_UI_URL") or embedded_ui
        smtp_url = _smtp_url(env)
        return cls(
            api_host=_text(env, "WAYBILL_API_HOST") or "127.0.0.1",
            api_port=_integer(env, "WAYBILL_API_PORT", 8000, 1, 65535),
            temporal_port=_integer(env, "WAYBILL_TEMPORAL_PORT", 7233, 1, 65535),
            temporal_ui_port=ui_port,
            pg_port=_integer(env, "WAYBILL_PG_PORT", 5433, 1, 65535),
            data_dir=Path(_text(env, "WAYBILL_DATA_DIR") or ".data").resolve(),
            database_url=database_url,
            database_owner_url=_text(env, "WAYBILL_DATABASE_OWNER_URL") or database_url,
            temporal_address=_text(env, "TEMPORAL_ADDRESS"),
            temporal_embedded=_flag(env, "WAYBILL_TEMPORAL_EMBEDDED") or False,
            temporal_ui_url=ui_url.rstrip("/") if ui_url else None,
            installation=installation,
            workers=_integer(env, "WAYBILL_WORKERS", 1, 1, 64),
            worker_metrics_host=_address(env, "WAYBILL_WORKER_METRICS_HOST", "127.0.0.1"),
            worker_metrics_port=_integer(env, "WAYBILL_WORKER_METRICS_PORT", 9100, 1, 65535),
            client_token=_text(env, "WAYBILL_CLIENT_TOKEN"),
            courier_token=_text(env, "WAYBILL_COURIER_TOKEN"),
            admin_token=_text(env, "WAYBILL_ADMIN_TOKEN"),
            webhook_allow_private=_flag(env, "WAYBILL_WEBHOOK_ALLOW_PRIVATE"),
            smtp_url=smtp_url,
            mail_from=_mail_from(env, needed=smtp_url is not None),
            retention_days=_integer(env, "WAYBILL_RETENTION_DAYS", 30, 1, 3650),
            hold_seconds=_integer(env, "WAYBILL_HOLD_SECONDS", 900, 1, 86_400),
            promise_seconds=_integer(env, "WAYBILL_PROMISE_SECONDS", 3600, 1, 604_800),
            cross_check_seconds=_integer(env, "WAYBILL_CROSS_CHECK_SECONDS", 300, 1, 86_400),
            cross_check_age_seconds=_integer(env, "WAYBILL_CROSS_CHECK_AGE_SECONDS", 600, 0, 86_400),
            sweep_seconds=_integer(env, "WAYBILL_SWEEP_SECONDS", 60, 1, 86_400),
            sweep_grace_seconds=_integer(env, "WAYBILL_SWEEP_GRACE_SECONDS", 5, 0, 86_400),
        )


def _text(env: Mapping[str, str], name: str) -> str | None:
    return env.get(name, "").strip() or None


def _address(env: Mapping[str, str], name: str, default: str) -> str:
    text = _text(env, name) or default
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise SettingsError(f"{name} is {text!r}: it takes an IP address.") from None


def _integer(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = _text(env, name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise SettingsError(f"{name} is {text!r}: it takes a whole number from {low} to {high}.") from None
    if not low <= value <= high:
        raise SettingsError(f"{name} is {value}: it takes a whole number from {low} to {high}.")
    return value


def _flag(env: Mapping[str, str], name: str) -> bool | None:
    text = _text(env, name)
    if text is None:
        return None
    if text in ("0", "1"):
        return text == "1"
    raise SettingsError(f"{name} is {text!r}: it takes 0 or 1.")


def _smtp_url(env: Mapping[str, str]) -> str | None:
    """A refusal does not quote it: it may hold a password."""
    text = _text(env, "WAYBILL_SMTP_URL")
    if text is None:
        return None
    form = "it takes smtp://host:port or smtps://user:password@host:port"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise SettingsError(f"WAYBILL_SMTP_URL cannot be read: {form}.") from None
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise SettingsError(f"WAYBILL_SMTP_URL is no address of a mail server: {form}.")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise SettingsError(f"WAYBILL_SMTP_URL has something behind the host (write '/' in a password as %2F): {form}.")
    if parts.password and not parts.username:
        raise SettingsError(f"WAYBILL_SMTP_URL has a password and no user: {form}.")
    return text


def _mail_from(env: Mapping[str, str], *, needed: bool) -> str | None:
    text = _text(env, "WAYBILL_MAIL_FROM")
    if text is None:
        if needed:
            raise SettingsError("WAYBILL_MAIL_FROM is not set: it says who sends what goes to WAYBILL_SMTP_URL.")
        return None
    wrong = (
        f"WAYBILL_MAIL_FROM is {text!r}: it takes one address, as in orders@shop.example or Shop <orders@shop.example>."
    )
    try:
        header: Any = SMTP.header_factory("From", text)
        [address] = header.addresses
        address.addr_spec.encode("ascii")
    except (ValueError, LookupError):
        raise SettingsError(wrong) from None
    if header.defects or not address.username or "." not in address.domain:
        raise SettingsError(wrong)
    return text
