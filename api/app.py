"""The API process: `python -m api.app`. One of the two composition roots (the other is `worker.py`)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from temporalio.client import Client

from activities.solver import Solver
from api import assignment, dispatch, inventory, ops, order, outbox, outbox_replay, snapshots, webhooks
from api.auth import Gate, Role
from api.console import create_console
from api.console.door import Guarded
from api.guesses import Guesses
from api.problems import install_problem_handlers
from api.services import Services
from db.engine import DATABASE_ERRORS, Database, WrongInstallation, create_engine
from db.samples import sampling
from domain.ids import Names
from logs import configure_logs
from settings import EX_CONFIG, Settings, SettingsError
from workflows.client import connect

log = structlog.get_logger(__name__)

_DRAIN_SECONDS = 6
# Longer than clients and proxies keep a connection for the next call: whoever closes first must not be the server, or
# a call that is on its way at that moment is lost. A stop closes idle connections at once.
_KEEP_ALIVE_SECONDS = 75
_POOL_SIZE = 30


def create_app(settings: Settings, temporal: Client | None = None) -> FastAPI:
    """Build the application; it connects when it starts. `temporal`: a client to use instead of an own one.

    Raises SettingsError when a token is missing or stands for two roles.
    """

    tokens = _tokens(settings)
    guesses = Guesses()
    console = create_console(tokens[Role.ADMIN], settings.installation, guesses)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(create_engine(settings.database_url or "", pool_size=_POOL_SIZE, name="waybill-api"))
        solver = Solver()
        app.state.services = console.state.services = Services(
            database=database,
            temporal=temporal or await connect(os.environ, embedded=settings.temporal_embedded, lazy=True),
            names=Names(settings.installation),
            temporal_ui_url=settings.temporal_ui_url,
            hold_seconds=settings.hold_seconds,
            sweep_seconds=settings.sweep_seconds,
            cross_check_seconds=settings.cross_check_seconds,
            sweep_grace_seconds=settings.sweep_grace_seconds,
            webhook_allow_private=settings.webhook_allow_private or False,
            solver=solver,
        )
        try:
            async with sampling(database, settings.sweep_grace_seconds):
                yield
        finally:
            solver.close()
            await database.close()

    # The interactive pages would load scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="Waybill", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    for room in (order, inventory, outbox, outbox_replay, webhooks, assignment, dispatch, ops, snapshots):
        app.include_router(room.router)
    install_problem_handlers(app)
    app.add_middleware(Gate, tokens=tokens, console=Guarded(console), guesses=guesses)
    return app


def server_options(settings: Settings) -> dict[str, Any]:
    """How uvicorn serves the application."""
    return {
        "host": settings.api_host,
        "port": settings.api_port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": _DRAIN_SECONDS,
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        "backlog": 512,
    }


async def _check_installation(settings: Settings) -> None:
    """Refuse another installation's database; one that is down is what `/readyz` tells."""
    database = Database(create_engine(settings.database_url or "", name="waybill-api"))
    try:
        await database.check_installation(settings.installation)
    except DATABASE_ERRORS as error:
        log.warning("database unavailable", error=str(error))
    finally:
        await database.close()


def _tokens(settings: Settings) -> dict[Role, str]:
    given = {
        Role.CLIENT: settings.client_token,
        Role.COURIER: settings.courier_token,
        Role.ADMIN: settings.admin_token,
    }
    tokens = {role: token for role, token in given.items() if token}
    for role in Role:
        if role not in tokens:
            raise SettingsError(f"WAYBILL_{role.name}_TOKEN is not set: nobody could call as {role.value}.")
    if len(set(tokens.values())) < len(tokens):
        raise SettingsError("Two of WAYBILL_CLIENT_TOKEN, WAYBILL_COURIER_TOKEN and WAYBILL_ADMIN_TOKEN are the same.")
    return tokens


def main() -> None:
    """Serve until SIGTERM or SIGINT. Exit code 78: misconfigured."""
    configure_logs("api")
    try:
        settings = Settings.from_env(os.environ)
        if settings.database_url is None:
            raise SettingsError("WAYBILL_DATABASE_URL is not set: it says where the truth is kept.")
        app = create_app(settings)
        asyncio.run(_check_installation(settings))
    except (SettingsError, WrongInstallation) as error:
        log.error(str(error))
        sys.exit(EX_CONFIG)
    uvicorn.run(app, **server_options(settings))


if __name__ == "__main__":
    main()
