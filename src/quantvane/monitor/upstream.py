"""The server that is watched: what it says about itself, whether a calibration fits it, trajectories through it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import aiohttp

from quantvane.errors import CapabilityError, EngineError, InputError, SpecError
from quantvane.monitor.calibration import Calibration, Fingerprint
from quantvane.monitor.records import Observation
from quantvane.monitor.shapes import observations

__all__ = ["Facts", "Generation", "collect", "compare", "fit", "learn", "open_session"]

_QUANT = re.compile(r"(?i)(?<![a-z0-9])((?:IQ|Q|TQ)\d(?:_[A-Z0-9]+)*|F16|BF16|F32|FP8|MXFP4)(?![a-z0-9])")
_PAGES = ("/v1/models", "/props", "/version", "/get_model_info", "/api/version", "/openapi.json")
_PAGE_BYTES = 4 << 20
_OWNERS = {"llamacpp": "llama-server", "vllm": "vllm", "sglang": "sglang", "library": "ollama"}
_ENGINES = {"llama_cpp.server": "llamacpp", "llama-server": "llamacpp", "vllm": "vllm", "sglang": "sglang",
            "ollama": "ollama"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says about itself; "" or None where it does not say.

    Attributes:
        server: ``llama_cpp.server``, ``llama-server``, ``vllm``, ``sglang``, ``ollama`` or "".
        models: what it serves, by the names it uses. path: the model's file, where the server names it.
        version: of the server. temperature: used where a request names none. stage: as in `Fingerprint`, where the
            server's kind settles it.
    """

    server: str = ""
    models: tuple[str, ...] = ()
    path: str = ""
    version: str = ""
    temperature: float | None = None
    stage: str = ""

    @property
    def engine(self) -> str:
        """Who computes: both of llama.cpp's servers are ``llamacpp``, as is the engine in process."""
        return _ENGINES.get(self.server, "")

    @property
    def keeps_chosen(self) -> bool:
        """The generated token is appended to a chat list that does not hold it."""
        return self.server == "llama_cpp.server"

    def leaves_out(self, *, chat: bool) -> bool:
        """Where log-probabilities were not asked for, their key is absent (not null)."""
        return self.server == "ollama" or (self.server == "llama-server" and chat)


def open_session(connect_seconds: float = 10.0, header_bytes: int = 32 << 10) -> aiohttp.ClientSession:
    """A client that follows nothing by itself: no cookies, no proxies of the environment, no decompression.

    It has no timeout for reading, which would be a timer set and reset a token; see `quantvane.monitor.proxy.flow`.
    """
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds),
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
        cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
        max_line_size=header_bytes, max_field_size=header_bytes, read_bufsize=1 << 16,
    )  # fmt: skip


async def learn(session: aiohttp.ClientSession, base: str, key: str = "") -> Facts:
    """Ask a server about itself.

    Args:
        base: address without ``/v1``. key: its API key, if it wants one.

    Raises:
        aiohttp.ClientError, TimeoutError, OSError: it cannot be reached.
    """
    pages: dict[str, Any] = {}
    for page in _PAGES:
        pages[page] = await _page(session, base + page, key)
    return read_facts(pages)


async def _page(session: aiohttp.ClientSession, url: str, key: str) -> Any:
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
    timeout = aiohttp.ClientTimeout(total=15.0)
    async with session.get(url, headers=headers, allow_redirects=False, timeout=timeout) as answer:
        if answer.status != 200:
            return None
        try:
            data = await answer.content.readexactly(_PAGE_BYTES)
        except asyncio.IncompleteReadError as whole:
            data = whole.partial
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None


def read_facts(pages: Mapping[str, Any]) -> Facts:
    """Facts from the JSON documents of a server's pages (path → document, None where there was none)."""
    listed = _dicts(_get(pages.get("/v1/models"), "data"))
    owners = {str(model.get("owned_by", "")).lower() for model in listed}
    server = next((kind for owner, kind in _OWNERS.items() if owner in owners), "")
    title = str(_get(_get(pages.get("/openapi.json"), "info"), "title") or "")
    props, version = pages.get("/props"), _get(pages.get("/version"), "version")
    if "llama.cpp Python" in title:
        server = "llama_cpp.server"
        version = _get(_get(pages.get("/openapi.json"), "info"), "version")
    elif isinstance(props, dict) and "default_generation_settings" in props:
        server, version = "llama-server", props.get("build_info")
    elif isinstance(pages.get("/get_model_info"), dict) and server in ("", "sglang"):
        server = "sglang"
    elif pages.get("/api/version") and server in ("", "ollama"):
        server, version = "ollama", _get(pages.get("/api/version"), "version")
    names = tuple(str(model["id"]) for model in listed if isinstance(model.get("id"), str))
    settings = _get(props, "default_generation_settings")
    temperature = _get(_get(settings, "params"), "temperature")
    if server == "llama_cpp.server":
        temperature = 0.8  # its request schema's default
    path = _get(props, "model_path") or _get(pages.get("/get_model_info"), "model_path")
    if not path and server == "llama_cpp.server" and len(names) == 1:
        path = names[0]
    return Facts(
        server, names, path if isinstance(path, str) else "", version if isinstance(version, str) else "",
        float(temperature) if isinstance(temperature, int | float) else None,
        "raw" if server in ("llama_cpp.server", "llama-server") else "",
    )  # fmt: skip


def _get(document: Any, name: str) -> Any:
    return document.get(name) if isinstance(document, dict) else None


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def fit(calibrated: Fingerprint, facts: Facts, k: int, digest: str = "") -> tuple[Fingerprint, tuple[str, ...]]:
    """The upstream's fingerprint as far as it is known, and the fields that it leaves open.

    A field that the server says nothing about is taken from the calibration: it is not compared, and is named.

    Args:
        k: log-probabilities asked for. digest: SHA-256 of the model's file, where it could be read.
    """
    known: dict[str, Any] = {"top_k": k}
    hashed = re.fullmatch(r"[0-9a-f]{64}", calibrated.model) is not None
    if hashed and digest:
        known["model"] = digest
    elif not hashed and facts.models:
        served = {name: name for name in facts.models} | {Path(name).name: name for name in facts.models}
        known["model"] = calibrated.model if calibrated.model in served else ", ".join(facts.models[:3])
    if "model" not in known or not hashed:
        label = quantization_of(" ".join((facts.path, *facts.models[:1])))
        if label and quantization_of(calibrated.quantization) == calibrated.quantization.upper():
            known["quantization"] = calibrated.quantization if label == calibrated.quantization.upper() else label
    if facts.engine and calibrated.engine:
        known["engine"] = calibrated.engine if calibrated.engine in (facts.engine, facts.server) else facts.engine
    if facts.version and calibrated.engine == facts.server:
        known["engine_version"] = facts.version  # in process, the version is another thing's
    if facts.stage:
        known["stage"] = facts.stage
    open_fields = tuple(
        f.name for f in fields(Fingerprint) if f.name not in known and f.name not in ("temperature", "horizon")
    )
    return replace(calibrated, **known), open_fields


def compare(calibration: Calibration, facts: Facts, k: int, digest: str = "") -> tuple[str, ...]:
    """Refuse a calibration that does not fit the upstream.

    Returns:
        the fields that could not be compared.

    Raises:
        ProtocolMismatchError: naming the fields that differ.
    """
    fingerprint, unknown = fit(calibration.fingerprint, facts, k, digest)
    calibration.check(fingerprint)
    return unknown


def quantization_of(name: str) -> str:
    """The quantization a file's or model's name carries, upper case; "" where it carries none."""
    found = _QUANT.findall(name)
    return str(found[-1]).upper() if found else ""


@dataclass(frozen=True, slots=True)
class Generation:
    """How trajectories are generated through a server.

    Attributes:
        k: log-probabilities to ask for. max_tokens: length of a trajectory. temperature: of the sampling.
        chat: through ``/v1/chat/completions``, a prompt being one user message; else ``/v1/completions``.
        model: name to ask for; "" for the first one served. key: the server's API key. seed: of the first prompt,
            counted up; None to leave it to the server. parallel: requests at a time.
        more: further members of each request (``top_p`` …).
    """

    k: int = 20
    max_tokens: int = 256
    temperature: float = 1.0
    chat: bool = True
    model: str = ""
    key: str = ""
    seed: int | None = 0
    parallel: int = 4
    more: Mapping[str, Any] | None = None


def collect(url: str, prompts: Iterable[str], settings: Generation) -> Iterator[list[Observation | None]]:
    """Generate through a server; one trajectory a prompt, in their order.

    Args:
        url: the server's base address, with or without ``/v1``.

    Yields:
        one observation a generated token, None for a token without a usable list.

    Raises:
        SpecError: no address. CapabilityError: the server answers without log-probabilities.
        EngineError: it cannot be reached or refuses.
    """
    if not re.match(r"https?://[^/]", url):
        raise SpecError("no server's address", expected="http(s)://HOST[:PORT]", got=url, remedy="name one")
    base = url.rstrip("/").removesuffix("/v1")
    with asyncio.Runner() as runner:
        session = runner.run(_opened())
        try:
            model = settings.model or _first_model(runner, session, base, settings.key)
            batch: list[dict[str, Any]] = []
            for i, prompt in enumerate(prompts):
                batch.append(_request(prompt, i, model, settings))
                if len(batch) == settings.parallel:
                    yield from runner.run(_all(session, base, batch, settings))
                    batch = []
            if batch:
                yield from runner.run(_all(session, base, batch, settings))
        finally:
            runner.run(session.close())


async def _opened() -> aiohttp.ClientSession:
    return open_session()


def _first_model(runner: asyncio.Runner, session: aiohttp.ClientSession, base: str, key: str) -> str:
    try:
        names = runner.run(learn(session, base, key)).models
    except (aiohttp.ClientError, TimeoutError, OSError) as problem:
        raise _unreachable(base, problem) from None
    return names[0] if names else "default"


def _request(prompt: str, i: int, model: str, settings: Generation) -> dict[str, Any]:
    body: dict[str, Any] = dict(settings.more or {})
    body |= {"model": model, "max_tokens": settings.max_tokens, "temperature": settings.temperature}
    if settings.seed is not None:
        body["seed"] = settings.seed + i
    if settings.chat:
        return body | {"messages": [{"role": "user", "content": prompt}], "logprobs": True, "top_logprobs": settings.k}
    return body | {"prompt": prompt, "logprobs": settings.k}


async def _all(
    session: aiohttp.ClientSession, base: str, batch: list[dict[str, Any]], settings: Generation
) -> list[list[Observation | None]]:
    return list(await asyncio.gather(*(_one(session, base, body, settings) for body in batch)))


async def _one(
    session: aiohttp.ClientSession, base: str, body: dict[str, Any], settings: Generation
) -> list[Observation | None]:
    path = "/v1/chat/completions" if settings.chat else "/v1/completions"
    headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
    try:
        async with session.post(base + path, json=body, headers=headers, allow_redirects=False) as answer:
            data, status = await answer.read(), answer.status
    except (aiohttp.ClientError, TimeoutError, OSError) as problem:
        raise _unreachable(base, problem) from None
    if status != 200:
        raise EngineError(
            f"the server refuses to generate (status {status})",
            expected="status 200",
            got=data[:300].decode(errors="replace"),
            remedy="see whether it offers log-probabilities, and how many (llama_cpp.server needs --logits_all true)",
        )
    try:
        choice = json.loads(data)["choices"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        raise EngineError(
            "the server's answer is no completion", expected="a JSON object with choices", got=repr(data[:100]),
            remedy="name the base address of an OpenAI-compatible server",
        ) from None  # fmt: skip
    found = observations(choice.get("logprobs"), settings.k)
    text = choice.get("text") or _get(choice.get("message"), "content")
    if text and not any(found):
        raise CapabilityError(
            "the server returns no usable log-probabilities",
            expected=f"the {settings.k} most probable tokens of every token",
            got="none",
            remedy="start it with log-probabilities enabled, or ask for fewer",
        )
    return found


def _unreachable(base: str, problem: BaseException) -> InputError | EngineError:
    return EngineError(
        f"the server at {base} cannot be reached", expected="an answer", got=type(problem).__name__,
        remedy="start it, or correct the address",
    )  # fmt: skip
