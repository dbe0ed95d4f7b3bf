"""The README's lines do what it says, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from local.leftovers import end_leftovers
from local.ports import free_port
from local.stack import DataDir, read_stack_env
from tests.receivers import Receiver, verified
from tests.servers import throw_away_directory
from tests.waiting import eventually

PROJECT = Path(__file__).parent.parent
PORTS = ("API_PORT", "PG_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT", "WORKER_METRICS_PORT")


def curl_lines() -> str:
    """The block behind the comment that names this test."""
    readme = (PROJECT / "README.md").read_text()
    [block] = re.findall(r"<!-- tests/test_readme.py .*?-->\n```sh\n(.*?)```", readme, re.DOTALL)
    return str(block)


def test_every_file_that_the_documents_name_is_there() -> None:
    named = re.compile(r"`(\w[\w-]*(?:/[\w.-]+)*/[\w-]+\.\w+)`")
    for document in ("README.md", "RUNBOOK.md"):
        paths = set(named.findall((PROJECT / document).read_text()))
        assert paths, document
        assert {path for path in paths if not (PROJECT / path).exists()} == set(), document


async def test_the_curl_lines_bring_an_order_to_the_door_and_a_receiver_holds_its_events(receiver: Receiver) -> None:
    with throw_away_directory() as directory:
        data_dir = DataDir(directory / ".data")
        environment = {f"WAYBILL_{name}": str(free_port()) for name in PORTS}
        environment |= {"PATH": os.environ["PATH"], "WAYBILL_DATA_DIR": str(data_dir.path)}
        log, printed = directory / "stack.log", directory / "printed"
        stack = _start([sys.executable, "-m", "local.up"], PROJECT, environment, log)
        try:

            async def up() -> bool:
                return data_dir.stack_env.exists()

            await eventually(up, 60)
            lines = curl_lines().replace("http://127.0.0.1:9099/", receiver.url)
            shell = _start(["/bin/sh", "-eu", "-c", lines], directory, dict(os.environ), printed)

            async def over() -> bool:
                return shell.poll() is not None

            await eventually(over, 60)
            said = printed.read_text()
            reserved, confirmed, _courier, picked_up, completed, shown = said.splitlines()[2:]
            assert '"status":"RESERVED"' in reserved
            assert '"status":"CONFIRMED"' in confirmed
            assert '"status":"PICKED_UP"' in picked_up
            assert '"status":"DELIVERED"' in completed
            assert '"status":"DELIVERED"' in shown
            await _hold_the_events(receiver, said)
            assert set(read_stack_env(data_dir.stack_env)) == {
                "WAYBILL_DATABASE_URL",
                "TEMPORAL_ADDRESS",
                "WAYBILL_API_URL",
                "WAYBILL_CLIENT_TOKEN",
                "WAYBILL_COURIER_TOKEN",
                "WAYBILL_ADMIN_TOKEN",
            }
        finally:
            stack.terminate()
            stack.wait()
            end_leftovers(data_dir.path, data_dir.postgres)


def _start(command: list[str], directory: Path, environment: dict[str, str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(command, cwd=directory, env=environment, stdout=file)


async def _hold_the_events(receiver: Receiver, said: str) -> None:
    """The receiver holds the order's events in order, each genuine by the secret that the lines printed."""
    secret = re.findall(r'"secret":"(whsec_[^"]+)"', said)[0]
    order_id = re.findall(r'"orderId":"([^"]+)"', said)[0]
    orders_story = ("order.reserved", "order.confirmed")
    deliverys_story = ("delivery.requested", "delivery.assigned", "delivery.picked_up")
    await receiver.got(*orders_story, *deliverys_story, "order.delivered", lane=order_id)
    for received in receiver.accepted:
        verified(received, secret)
