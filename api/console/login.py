"""Logging in with the admin token, and out."""

from __future__ import annotations

import re
from functools import partial
from urllib.parse import unquote

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from api.console.pages import LOGIN, page
from api.console.session import SESSION_SECONDS, Session, Sessions
from api.guesses import Guesses
from api.services import ServicesDep
from db.sessions import end_session

router = APIRouter()

_OWN_ADDRESS = re.compile(r"/console(/[A-Za-z0-9._~%/-]*)?(\?[\x21-\x7e]*)?")


@router.get(LOGIN)
async def show_login(request: Request) -> Response:
    """Ask for the token."""
    return login_page(request, request.query_params.get("next", ""))


def login_page(request: Request, wanted: str, http_status: int = 200, *, wrong: str = "") -> Response:
    """The login; `wanted`: the page that was asked for, `wrong`: why nobody was let in."""
    return page(request, "login.html", http_status, wanted=_own(wanted), wrong=wrong)


def _own(address: str) -> str:
    """The address if it is one of the console's pages, else the overview."""
    own = _OWN_ADDRESS.fullmatch(address) and ".." not in unquote(address) and not address.startswith(LOGIN)
    return address if own else "/console"


@router.post(LOGIN)
async def log_in(request: Request) -> Response:
    """Open a session for whoever has the admin token."""
    sessions: Sessions = request.app.state.sessions
    form = await request.form()
    token, wanted = str(form.get("token", "")).strip(), str(form.get("next", ""))
    if not sessions.is_admin_token(token):
        guesses: Guesses = request.app.state.guesses
        guesses.wrong(request.client.host if request.client else None)
        return login_page(request, wanted, 401, wrong="This is not the admin token.")
    answer = RedirectResponse(_own(wanted), 303)
    answer.set_cookie(
        sessions.cookie,
        sessions.open(),
        max_age=SESSION_SECONDS,
        path="/console",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/console/logout")
async def log_out(request: Request, services: ServicesDep) -> Response:
    """End this session, in whatever browser somebody has its cookie."""
    sessions: Sessions = request.app.state.sessions
    session: Session = request.state.session
    await services.database.transact(partial(end_session, session_id=session.session_id, expires_at=session.expires_at))
    answer = RedirectResponse(LOGIN, 303)
    answer.delete_cookie(sessions.cookie, path="/console", httponly=True, samesite="strict")
    return answer
