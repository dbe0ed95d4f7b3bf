"""The console: an admin's face on what the API does. Its pages call the functions behind the API's own addresses.

It is an application of its own beside the API, because its strangers are shown a login and its errors are pages.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles

from api.console import (
    actions,
    assignment,
    attention,
    failures,
    inventory,
    login,
    orders,
    overview,
    replays,
    reservations,
    rounds,
    snapshots,
    webhooks,
)
from api.console.door import Door, require_csrf_token
from api.console.pages import STATIC, show_problem
from api.console.session import Sessions
from api.guesses import Guesses
from api.problems import install_problem_handlers

_ROOMS = (
    login,
    overview,
    failures,
    replays,
    reservations,
    inventory,
    assignment,
    rounds,
    attention,
    orders,
    webhooks,
    snapshots,
    actions,
)


def create_console(admin_token: str, installation: str, guesses: Guesses) -> FastAPI:
    """Build the console. Who mounts it sets `state.services`, which its handlers use as the API's do."""
    console = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(require_csrf_token)],
    )
    sessions = Sessions(admin_token, installation)
    console.state.sessions = sessions
    console.state.guesses = guesses
    console.state.installation = installation
    console.mount(STATIC.rstrip("/"), StaticFiles(directory=Path(__file__).parent / "static"))
    for room in _ROOMS:
        console.include_router(room.router)
    install_problem_handlers(console, show_problem)
    console.add_middleware(Door, sessions=sessions)
    return console
