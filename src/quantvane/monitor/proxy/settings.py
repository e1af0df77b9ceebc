"""How a watching proxy is set up: one frozen record, checked when it is made."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from quantvane.errors import SpecError

__all__ = ["ACTIONS", "Limits", "WatchSettings"]

ACTIONS = ("observe", "annotate", "truncate")


@dataclass(frozen=True, slots=True)
class Limits:
    """Where the proxy stops; every limit that is met ends in a counted fault.

    Attributes:
        request_bytes: largest request body. answer_bytes: largest whole answer to a completion request.
        event_bytes: largest single event of a stream. stream_bytes: most bytes of one stream.
        header_bytes: largest header section of the upstream's.
        stream_seconds: longest stream. idle_seconds: longest silence of the upstream, or of a client that does
            not read. connect_seconds: to reach the upstream. streams: concurrent completion requests.
    """

    request_bytes: int = 32 << 20
    answer_bytes: int = 128 << 20
    event_bytes: int = 4 << 20
    stream_bytes: int = 1 << 30
    header_bytes: int = 32 << 10
    stream_seconds: float = 3600.0
    idle_seconds: float = 300.0
    connect_seconds: float = 10.0
    streams: int = 1024


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """One proxy in front of one upstream.

    Attributes:
        upstream: base URL, fixed for the proxy's life; a path is put before every request's path, and a final
            ``/v1`` is taken for the base URL that clients use and left out.
        action: ``observe`` changes nothing, ``annotate`` adds the verdict to answers, ``truncate`` also ends
            them at the first passage.
        k: log-probabilities to ask for.
        host, port: where to listen.
        token: secret for the page and the metrics; "" for none.
        recheck_seconds: how often the upstream is compared with the calibration again.

    Raises:
        SpecError: an address or an option that cannot be.
    """

    upstream: str
    action: str = "observe"
    k: int = 20
    host: str = "127.0.0.1"
    port: int = 8100
    token: str = field(default="", repr=False)
    recheck_seconds: float = 60.0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        parts = urlsplit(self.upstream)
        try:
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or parts.username or parts.password:
            raise SpecError(
                "the upstream's address cannot be used",
                expected="http://HOST[:PORT] or https://HOST[:PORT], a path allowed, no user, query or fragment",
                got=_masked(self.upstream),
                remedy="for example --upstream http://127.0.0.1:8080",
            )
        if self.action not in ACTIONS:
            raise SpecError(
                f"action '{self.action}' is unknown", expected=", ".join(ACTIONS), got=self.action,
                remedy="choose one of them",
            )  # fmt: skip
        if not 1 <= self.k <= 1000 or not 0 <= self.port <= 65535:
            raise SpecError(
                "k or port out of range", expected="1 ≤ k ≤ 1000, 0 ≤ port ≤ 65535", got=f"{self.k}, {self.port}",
                remedy="correct it",
            )  # fmt: skip

    @property
    def base(self) -> str:
        """The upstream's address before a request's path."""
        base = self.upstream.rstrip("/")
        return base[: -len("/v1")] if base.endswith("/v1") else base

    @property
    def loopback(self) -> bool:
        """True where only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _masked(url: str) -> str:
    """The address without what may be a secret."""
    head, at, tail = url.partition("@")
    return f"{head.split('//')[0]}//…@{tail}" if at else url
