"""The embedded Temporal, for real: search attributes, and that its file resumes after a stop and after a kill."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client

from domain.ids import SEARCH_ATTRIBUTES
from local.errors import StackError
from local.ports import free_port
from local.temporal import NAMESPACE, EmbeddedTemporal
from tests.servers import throw_away_directory, throw_away_temporal
from tests.waiting import eventually, wait_until


@pytest.fixture(name="directory")
def _directory() -> Iterator[Path]:
    with throw_away_directory() as directory:
        yield directory


def _kept_in(directory: Path, ui_port: int | None = None) -> EmbeddedTemporal:
    return EmbeddedTemporal(
        free_port(), log=directory / "temporal.log", database=directory / "temporal.db", ui_port=ui_port
    )


async def _search_attributes(client: Client) -> set[str]:
    request = ListSearchAttributesRequest(namespace=NAMESPACE)
    return set((await client.operator_service.list_search_attributes(request)).custom_attributes)


async def test_it_serves_its_namespace_and_search_attributes_as_soon_as_it_is_started() -> None:
    with throw_away_temporal() as temporal:
        client = await Client.connect(temporal.address)
        assert await _search_attributes(client) >= set(SEARCH_ATTRIBUTES)
    assert not temporal.running


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_its_file_resumes(directory: Path, how: signal.Signals) -> None:
    temporal = _kept_in(directory)
    with temporal:
        client = await Client.connect(temporal.address)
        await client.start_workflow("Anything", id="kept", task_queue="nobody")
        temporal.process.signal(how)
        wait_until(lambda: not temporal.running)
        temporal.start()
        again = await Client.connect(temporal.address)
        description = await again.get_workflow_handle("kept").describe()
        assert description.workflow_type == "Anything"
        assert await _search_attributes(again) >= set(SEARCH_ATTRIBUTES)

        async def is_listed() -> bool:
            return [found.id async for found in again.list_workflows("WorkflowType = 'Anything'")] == ["kept"]

        await eventually(is_listed)


async def test_nothing_of_it_leaves_loopback(directory: Path) -> None:
    with _kept_in(directory, ui_port=free_port()) as temporal:
        listening = {
            connection.laddr.ip
            for connection in psutil.Process(temporal.process.pid).net_connections(kind="tcp")
            if connection.laddr and connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}


async def test_the_users_own_temporal_settings_are_for_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "203.0.113.1:7233")
    monkeypatch.setenv("TEMPORAL_API_KEY", "of another server")
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", "/there/is/none")
    with throw_away_temporal() as temporal:
        assert temporal.running


def test_a_server_that_cannot_start_says_why(directory: Path) -> None:
    (directory / "temporal.db").write_text("this is no database file")
    with pytest.raises(StackError, match="Temporal did not start: "):
        _kept_in(directory).start()
