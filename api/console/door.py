"""The console's door: who comes in, from where, and what the browser is told of every answer."""

from __future__ import annotations

import hmac
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import Role, refuse_unknowable
from api.console.pages import LOGIN, STATIC, is_htmx, show_problem
from api.console.session import Session, Sessions
from api.problems import Problem, database_unavailable
from api.services import Services
from db.engine import DATABASE_ERRORS, is_passing
from db.sessions import is_ended

CSRF_FIELD = "csrf"
_SAFE_METHODS = ("GET", "HEAD")
_HEADERS = {
    # Only what the project ships runs, shows or is called; nothing of it in a page's own text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: browsers would then send the origin of a form as null.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Door:
    """ASGI middleware: lets an admin's session in, shows others the login, and keeps other sites' forms out."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the call through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await (await self._refusal(Request(scope)) or self._app)(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        path = request.scope["path"]
        request.state.session = None
        try:
            session = await self._session(request)
            request.state.session = session
            refuse_unknowable(request.scope)
            if request.method not in _SAFE_METHODS:
                _refuse_other_sites(request)
        except Problem as problem:
            return show_problem(request, problem)
        if session is not None:
            request.state.role = Role.ADMIN
            return None
        # `/console` itself answers strangers with the login.
        if path in (LOGIN, "/console") or path.startswith(STATIC):
            return None
        return _to_login(request)

    async def _session(self, request: Request) -> Session | None:
        """The session of the call, unless somebody logged out of it. What is shipped as it is asks nobody."""
        session = self._sessions.find(request.cookies.get(self._sessions.cookie))
        if session is None or request.scope["path"].startswith(STATIC):
            return session
        services: Services = request.app.state.services
        try:
            async with services.database.read() as connection:
                ended = await is_ended(connection, session.session_id)
        except DATABASE_ERRORS as error:
            if not is_passing(error):
                raise
            raise database_unavailable(request, error) from error
        return None if ended else session


class Guarded:
    """ASGI wrapper of the whole console: every answer, those to bugs too, tells the browser what it may do with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, and add the headers to its answer."""
        cached = scope["path"].startswith(STATIC)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers["Cache-Control"] = "no-cache" if cached else "no-store"
            await send(message)

        await self._app(scope, receive, guarded)


def _to_login(request: Request) -> Response:
    if is_htmx(request):  # of a page that was open when its session ended: leading away would lose what is typed there
        detail = "Log in again in another tab: what is typed here stays, and can then be sent."
        return show_problem(request, Problem(401, "session-over", "The session is over; nothing was done.", detail))
    query = f"?{request.url.query}" if request.url.query else ""
    wanted = request.url.path + query if request.method in _SAFE_METHODS else "/console"
    return RedirectResponse(f"{LOGIN}?next={quote(wanted)}", 303)


def _refuse_other_sites(request: Request) -> None:
    """Browsers say where a form comes from. Compared by host: behind a proxy the scheme may be another."""
    origin = request.headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    if foreign or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise _forged("The form comes from another site.")


async def require_csrf_token(request: Request) -> None:
    """Raise the problem of a form that this session's pages did not make."""
    session: Session | None = request.state.session
    if request.method in _SAFE_METHODS or session is None:  # without a session only the login can be posted
        return
    given = (await request.form()).get(CSRF_FIELD)
    if not isinstance(given, str) or not hmac.compare_digest(session.csrf_token.encode(), given.encode()):
        raise _forged("The form is not of this session: load the page again.")


def _forged(detail: str) -> Problem:
    return Problem(403, "forged-form", "Nothing was done.", detail)
