"""How the API and the workers reach Temporal, and what stands there for good: relays and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import (
    Client,
)
from temporalio.envconfig import ClientConfigProfile
from temporalio.runtime import Runtime
from temporalio.service import GrpcCompression

from domain.ids import SEARCH_ATTRIBUTES

_DATABASE_MEMO = "database_id"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


async def connect(
    env: Mapping[str, str], *, embedded: bool, lazy: bool = False, runtime: Runtime | None = None
) -> Client:
    """Connect by the SDK's own `TEMPORAL_*` variables and, unless the server is the embedded one, its config file.

    `lazy`: the first call connects, so that a process starts while Temporal is down.
    """
    profile = ClientConfigProfile.load(disable_file=embedded, override_env_vars=dict(env))
    config = profile.to_client_connect_config()
    address = config.get("target_host") or "127.0.0.1:7233"
    config["target_host"] = address
    compression = GrpcCompression.NONE if address.rpartition(":")[0] in _LOOPBACK else GrpcCompression.GZIP
    return await Client.connect(**config, lazy=lazy, runtime=runtime, grpc_compression=compression)


async def ensure_search_attributes(client: Client) -> None:
    """Register Waybill's search attributes where they are missing (Temporal Cloud does it in its own way)."""
    known = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    missing = [name for name in SEARCH_ATTRIBUTES if name not in known.custom_attributes]
    if missing:
        await add_search_attributes(client, missing)


async def add_search_attributes(client: Client, names: Sequence[str]) -> None:
    """Register attributes of type Keyword in the client's namespace."""
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=client.namespace,
            search_attributes=dict.fromkeys(names, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD),
        )
    )
