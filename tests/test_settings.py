"""What the environment may say: where e-mail goes and metrics are served; and what is refused with a reason."""

from __future__ import annotations

import pytest

from settings import Settings, SettingsError
from sinks.email import MailServer

FROM = "Tea Shop <orders@shop.example>"


def read(url: str, mail_from: str = FROM) -> Settings:
    """The settings of that environment."""
    return Settings.from_env({"WAYBILL_SMTP_URL": url, "WAYBILL_MAIL_FROM": mail_from})


def test_email_is_off_unless_it_is_set() -> None:
    assert Settings.from_env({}).smtp_url is None
    assert read("").smtp_url is None


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example", ("mail.example", 25, False, None, None)),
        ("smtp://[::1]:1025/", ("::1", 1025, False, None, None)),
        ("smtp://ada%40shop:p%2F%3Aw@mail.example", ("mail.example", 587, False, "ada@shop", "p/:w")),
        ("smtps://ada:secret@mail.example", ("mail.example", 465, True, "ada", "secret")),
    ],
)
def test_a_mail_server_is_read_with_its_user_and_password(url: str, server: tuple[object, ...]) -> None:
    settings = read(url)
    found = MailServer.of(settings.smtp_url or "", settings.mail_from or "")
    assert (found.hostname, found.port, found.tls, found.username, found.password) == server
    assert (found.sender.addr_spec, found.sender.display_name) == ("orders@shop.example", "Tea Shop")
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    "url",
    ["mail.example", "http://mail.example", "smtp://", "smtp://h:99999", "smtp://h:x", "smtp://[::1", "smtp://h/inbox",
     "smtp://h?tls=no", "smtp://ada:hush/hush@h", "smtp://:hush@h", "smtps:hush"],
)  # fmt: skip
def test_a_mail_server_that_cannot_be_meant_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^WAYBILL_SMTP_URL ") as refused:
        read(url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "mail_from",
    ["", "orders", "orders@localhost", "@shop.example", "a@shop.example, b@shop.example", "Shop <>", "a b@shop.example",
     "a@shop.example\nBcc: eve@evil.example", "kä@shop.example"],
)  # fmt: skip
def test_a_sender_that_cannot_be_meant_is_refused(mail_from: str) -> None:
    with pytest.raises(SettingsError, match=r"^WAYBILL_MAIL_FROM is "):
        read("smtp://mail.example", mail_from)


def test_workers_show_their_metrics_to_this_machine_only_unless_told_otherwise() -> None:
    assert Settings.from_env({}).worker_metrics_host == "127.0.0.1"
    assert Settings.from_env({"WAYBILL_WORKER_METRICS_HOST": "192.0.2.1"}).worker_metrics_host == "192.0.2.1"


def test_where_workers_show_their_metrics_is_an_address() -> None:
    with pytest.raises(SettingsError, match="WAYBILL_WORKER_METRICS_HOST is 'worker': it takes an IP address"):
        Settings.from_env({"WAYBILL_WORKER_METRICS_HOST": "worker"})
