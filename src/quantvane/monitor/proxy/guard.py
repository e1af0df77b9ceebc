"""Who may see the page and the metrics."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable

from quantvane.monitor.proxy.settings import WatchSettings

__all__ = ["refusal"]

_LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]", ""})


def refusal(settings: WatchSettings, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Why a request for the page or the metrics is refused: ``unauthorized``, ``bad_host``, or "" if it is not.

    With a token: ``Authorization: Bearer TOKEN``, or Basic with the token as the password of any user, which is what a
    browser can ask for. Without one, on loopback: only under a local name, so that a web page elsewhere cannot
    read along under a name of its own that resolves to this machine.
    """
    values = {name: value for name, value in headers if name in (b"authorization", b"host")}
    if settings.token:
        return "" if _knows(settings.token, values.get(b"authorization", b"")) else "unauthorized"
    if settings.loopback:
        host = values.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        return "" if name in _LOCAL or name.startswith("127.") else "bad_host"
    return ""


def _knows(token: str, given: bytes) -> bool:
    scheme, _, rest = given.partition(b" ")
    secret = rest.strip()
    if scheme.lower() == b"basic":
        try:
            secret = base64.b64decode(secret, validate=True).partition(b":")[2]
        except ValueError:
            return False
    elif scheme.lower() != b"bearer":
        return False
    return hmac.compare_digest(secret, token.encode())
