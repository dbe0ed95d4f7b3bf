"""Every error is a problem detail (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from db.engine import DATABASE_ERRORS, error_code, is_passing

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS = 2


class Problem(Exception):
    """An answer that is an error: `type` is `/problems/<slug>`; `members` are the problem's own."""

    def __init__(
        self,
        status: int,
        slug: str,
        title: str,
        detail: str | None = None,
        *,
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(title)
        self.status = status
        self.slug = slug
        self.title = title
        self.detail = detail
        self.members = dict(members or {})
        self.headers = dict(headers or {})

    def response(self, instance: str) -> Response:
        """The problem as it goes out, for the resource that was called."""
        body = {
            "type": f"/problems/{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail or self.title,
            "instance": instance,
            **self.members,
        }
        # ASCII: whatever a caller sent that finds its way in here can be written.
        content = json.dumps(body, default=str)
        return Response(content, self.status, self.headers, media_type="application/problem+json")


def not_found(noun: str) -> Problem:
    """There is no such thing, whatever the shape of the id."""
    return Problem(404, "not-found", f"There is no such {noun}.")


def invalid(slug: str, title: str, **members: Any) -> Problem:
    """The request is well-formed and cannot be meant."""
    return Problem(422, slug, title, members=members)


def conflict(slug: str, title: str, **members: Any) -> Problem:
    """The state of things does not allow it."""
    return Problem(409, slug, title, members=members)


def unavailable(slug: str, title: str, detail: str | None = None, **members: Any) -> Problem:
    """Not now: the same call may pass after a while."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return Problem(503, slug, title, detail, members=members, headers=headers)


def database_unavailable(request: Request, error: Exception) -> Problem:
    """PostgreSQL did not answer a call, for the moment."""
    log.warning("database unavailable", path=request.scope["path"], error=error_code(error))
    return unavailable("database-unavailable", "The database does not answer at the moment.")


_HTTP_PROBLEMS = {
    400: ("bad-request", "The request cannot be read."),
    404: ("not-found", "There is nothing at this address."),
    405: ("method-not-allowed", "This address does not take that method."),
    413: ("content-too-large", "The body is larger than 1 MiB."),
}


_URI_PATH = "/%:@!$&'()*+,;=~"


def instance(scope: Scope) -> str:
    """The address that was called as a URI reference: as it came, where that is one, whatever it stands for."""
    sent: bytes | None = scope.get("raw_path")
    return quote(sent, safe=_URI_PATH) if sent is not None else quote(scope["path"])


def _detail(request: Request, problem: Problem) -> Response:
    return problem.response(instance(request.scope))


_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def _allow(request: Request, headers: Mapping[str, str] | None) -> dict[str, str]:
    """`Allow` for all routes of the address: the framework names the methods of the first alone."""
    routes = request.app.routes
    methods = [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    if "GET" in methods:
        methods.insert(1, "HEAD")
    return {**(headers or {}), **({"Allow": ", ".join(methods)} if methods else {})}


def install_problem_handlers(app: FastAPI, show: Callable[[Request, Problem], Response] = _detail) -> None:
    """Turn everything that can be raised into a problem, and that into an answer: by default a problem detail."""

    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> Response:
        return show(request, problem)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        slug, title = _HTTP_PROBLEMS.get(error.status_code, ("http-error", str(error.detail)))
        headers = _allow(request, error.headers) if error.status_code == 405 else error.headers
        return show(request, Problem(error.status_code, slug, title, headers=headers))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return show(request, _not_said_to_be_json() if isinstance(error.body, bytes) else _invalid_request(error))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        log.error("unexpected error", path=request.scope["path"], exc_info=error)
        return show(request, Problem(500, "internal-error", "Something went wrong on our side."))

    async def on_database_error(request: Request, error: Exception) -> Response:
        if not is_passing(error):
            return await on_bug(request, error)
        return show(request, database_unavailable(request, error))

    for kind in DATABASE_ERRORS:
        app.add_exception_handler(kind, on_database_error)


def _not_said_to_be_json() -> Problem:
    """The framework leaves such a body as bytes."""
    detail = "Send the header Content-Type: application/json."
    return Problem(415, "unsupported-media-type", "The body is not said to be JSON.", detail)


def _invalid_request(error: RequestValidationError) -> Problem:
    """What is wrong where. The input is not echoed: it may be personal, or not even encodable."""
    errors = error.errors()
    if any(each["type"] == "json_invalid" for each in errors):
        return Problem(400, "malformed-json", "The body is not valid JSON.")
    told = [
        {"where": ".".join(str(part) for part in each["loc"]), "what": each["msg"].removeprefix("Value error, ")}
        for each in errors
    ]
    detail = "; ".join(f"{each['where']}: {each['what']}" for each in told[:5])
    return Problem(422, "invalid-request", "The request is not valid.", detail, members={"errors": told})
