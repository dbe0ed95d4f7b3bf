"""Logging in with the admin token, and out."""

from __future__ import annotations

import re
from urllib.parse import unquote

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from api.console.pages import LOGIN, page
from api.console.session import SESSION_SECONDS, Sessions

router = APIRouter()

_OWN_ADDRESS = re.compile(r"/console(/[A-Za-z0-9._~%/-]*)?(\?[\x21-\x7e]*)?")


@router.get(LOGIN)
async def show_login(request: Request) -> Response:
    """Ask for the token."""
    return login_page(request, request.query_params.get("next", ""))


def login_page(request: Request, wanted: str, *, wrong: bool = False) -> Response:
    """The login; `wanted`: the page that was asked for."""
    return page(request, "login.html", 401 if wrong else 200, wanted=_own(wanted), wrong=wrong)


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
        return login_page(request, wanted, wrong=True)
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
async def log_out(request: Request) -> Response:
    """End this browser's session."""
    sessions: Sessions = request.app.state.sessions
    answer = RedirectResponse(LOGIN, 303)
    answer.delete_cookie(sessions.cookie, path="/console", httponly=True, samesite="strict")
    return answer
