"""A slice of `make soak`: workers killed between the sending of an e-mail and its settling."""

from __future__ import annotations

from pathlib import Path

from temporalio.client import Client

from local.temporal import EmbeddedTemporal
from soak.email import Kill, soak


async def test_kills_between_sending_and_settling_leave_one_email_a_notification(
    database_url: str, client: Client, temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    kills = [Kill(at_mail=3, seconds_after_answer=None), Kill(at_mail=2, seconds_after_answer=0.004)]
    run = await soak(database_url, client, temporal.address, tmp_path / "worker.log", orders=15, kills=kills)
    assert run.seen["kills"] == 2
    assert run.seen["kills that lost a settle"] > 0
    assert run.seen["e-mails at the server"] > run.seen["e-mails due"] == 30  # the repeats, all of them known as such
