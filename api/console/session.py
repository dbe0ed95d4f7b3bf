"""Who is logged in at the console: a cookie signed with a key made from the admin token.

Any API process can check it; another admin token ends every session. Only those that somebody logged out of are kept
(`db/sessions.py`).
"""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

SESSION_SECONDS = 12 * 3600


@dataclass(frozen=True)
class Session:
    """An admin's session; its forms carry `csrf_token`, which other sites cannot know."""

    csrf_token: str = field(repr=False)
    session_id: str
    expires_at: datetime


class Sessions:
    """Opens and recognises sessions."""

    def __init__(self, admin_token: str, installation: str) -> None:
        self._admin_token = admin_token.encode()
        self._key = hmac.digest(self._admin_token, f"waybill console {installation}".encode(), "sha256")
        # Browsers keep one jar for all ports of a machine: two installations' consoles do not log each other out.
        self.cookie = f"waybill-console-{installation}"

    def is_admin_token(self, given: str) -> bool:
        """Whether this is the admin token; how long the answer takes says nothing."""
        return hmac.compare_digest(self._admin_token, given.encode(errors="replace"))

    def open(self, seconds: int = SESSION_SECONDS) -> str:
        """The cookie of a new session that lasts so long."""
        claim = f"{int(time.time()) + seconds}.{secrets.token_urlsafe(16)}"
        return f"{claim}.{self._sign('session', claim)}"

    def find(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None for one that is forged or over. Whether it was ended, the rows know."""
        claim, _, signature = (cookie or "").rpartition(".")
        if not hmac.compare_digest(self._sign("session", claim).encode(), signature.encode(errors="replace")):
            return None
        expires_at, _, session_id = claim.partition(".")
        if int(expires_at) <= time.time():
            return None
        return Session(self._sign("form", claim), session_id, datetime.fromtimestamp(int(expires_at), UTC))

    def _sign(self, purpose: str, claim: str) -> str:
        return hmac.digest(self._key, f"{purpose}.{claim}".encode(errors="replace"), "sha256").hex()
