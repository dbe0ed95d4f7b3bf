"""How the API is served."""

from __future__ import annotations

import asyncio

import httpx
from temporalio.client import Client

from api.app import server_options
from tests.houses import open_house


async def test_the_server_closes_no_idle_connection_before_its_client_does_and_all_when_it_stops(
    database_url: str, client: Client, installation: str
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        assert server_options(house.settings)["timeout_keep_alive"] > (httpx.Limits().keepalive_expiry or 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", house.settings.api_port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: waybill\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    await reader.read()  # to its end: the server has stopped
    writer.close()
