"""Who may call what: decided before a body is read, by a table that denies what it does not name."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from enum import StrEnum

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.guesses import Guesses
from api.problems import Problem, instance, invalid

MAX_BODY_BYTES = 1024 * 1024


class Role(StrEnum):
    """What a bearer token stands for; the name is the caller's in ids and in the audit."""

    CLIENT = "client"
    COURIER = "courier"
    ADMIN = "admin"


_PUBLIC = ("/healthz", "/readyz", "/openapi.json")
# An admin may call everything. Deliveries are read by clients and couriers, moved by couriers.
_ALLOWED: tuple[tuple[str, frozenset[Role], frozenset[Role]], ...] = (
    # prefix, who may read, who may write
    ("/api/orders", frozenset({Role.CLIENT}), frozenset({Role.CLIENT})),
    ("/api/products", frozenset({Role.CLIENT}), frozenset()),
    ("/api/deliveries", frozenset({Role.CLIENT, Role.COURIER}), frozenset({Role.COURIER})),
    ("/api/couriers", frozenset({Role.COURIER}), frozenset({Role.COURIER})),
)


def allowed(role: Role, method: str, path: str) -> bool:
    """Whether the role may call the address with the method."""
    if role is Role.ADMIN:
        return True
    for prefix, readers, writers in _ALLOWED:
        if path == prefix or path.startswith(prefix + "/"):
            return role in (readers if method in ("GET", "HEAD") else writers)
    return False


def refuse_unknowable(scope: Scope) -> None:
    """Raise the problem of an address that holds what no name or id does: a NUL character, or a slash of its own.

    Routes see the path decoded: there `%2F` would make an id's end the name of an action.
    """
    if "\0" in scope["path"] or b"%2f" in scope.get("raw_path", b"").lower():
        raise Problem(404, "not-found", "There is nothing at this address.")
    if b"%00" in scope.get("query_string", b""):
        raise invalid("invalid-request", "The query holds a NUL character.")


_CONSOLE = "/console"


class Gate:
    """ASGI middleware: authenticates, authorises, and keeps out what no handler could use.

    The caller's role is `request.state.role` behind it. What is for the console goes there: it has a door of its own.
    """

    def __init__(self, app: ASGIApp, tokens: Mapping[Role, str], console: ASGIApp, guesses: Guesses) -> None:
        self._app = app
        self._console = console
        self._guesses = guesses
        self._tokens = {token.encode(): role for role, token in tokens.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the call through, or answer with the problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        for_console = scope["path"] == _CONSOLE or scope["path"].startswith(_CONSOLE + "/")
        try:
            if not for_console:
                self._authorise(scope)
                refuse_unknowable(scope)
        except Problem as problem:
            await problem.response(instance(scope))(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await (self._console if for_console else self._app)(scope, _limited(scope, receive), send)

    def _authorise(self, scope: Scope) -> None:
        path = scope["path"]
        if path not in _PUBLIC:
            authorization = dict(scope["headers"]).get(b"authorization", b"")
            role = self._role(authorization)
            if role is None:
                if authorization:
                    self._guesses.wrong(scope["client"][0] if scope.get("client") else None)
                raise Problem(
                    401,
                    "unauthorized",
                    "This address needs a bearer token that is known.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            if not allowed(role, scope["method"], path):
                raise Problem(403, "forbidden", f"The role {role} may not do this.")
            scope.setdefault("state", {})["role"] = role

    def _role(self, authorization: bytes) -> Role | None:
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        given = given.strip()
        found = None
        for token, role in self._tokens.items():  # every token is compared, so that time tells nothing
            if hmac.compare_digest(token, given):
                found = role
        return found


def _without_body(send: Send) -> Send:
    """HEAD is GET of which only the head goes out."""

    async def head_only(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return head_only


def _limited(scope: Scope, receive: Receive) -> Receive:
    """Read no more of a body than anybody may send."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = length.isdigit() and int(length) > MAX_BODY_BYTES
    received = 0

    async def limited() -> Message:
        nonlocal received
        if too_large:
            raise HTTPException(413)
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413)
        return message

    return limited
