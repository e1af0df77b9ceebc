"""Recording trajectories into a journal: from an engine inside a worker process, or from a server."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.corpora.text import read_corpus
from quantvane.engines.base import Engine
from quantvane.engines.decoding import Tokens, open_decoder
from quantvane.engines.registry import open_engine
from quantvane.engines.settings import Setting, boolean, read_settings
from quantvane.errors import CorpusError, EngineError, OutputError, SpecError
from quantvane.monitor.calibration import Fingerprint
from quantvane.monitor.records import Observation
from quantvane.monitor.trajectories import measured_rows
from quantvane.run.trajectories import Sampling, generate_group, prompts_of_text
from quantvane.spec import ModelSpec, canonical_hash
from quantvane.store.atomic import make_directory, read_json, write_json
from quantvane.store.journal import Journal
from quantvane.store.manifest import processor
from quantvane.store.trajectories import journal_trajectories, trajectory_batch, write_trajectories
from quantvane.types import FloatArray

__all__ = ["RecordTrajectories", "chosen_prompts", "fingerprint_of", "read_prompts", "record_trajectories"]

SERVER_KEY = "QUANTVANE_UPSTREAM_KEY"
Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class RecordTrajectories:
    """Everything that decides what is recorded.

    Attributes:
        model: engine model, or a server's URL. name: file name of the recording.
        prompts: file of prompts, one a line, or JSON lines with "prompt"; "" where ``texts`` are cut into prompts.
        trajectories: how many. prompt_tokens: length of prompts cut from texts. slots: sequences at once.
    """

    model: ModelSpec
    name: str
    sampling: Sampling
    prompts: str = ""
    texts: tuple[str, ...] = ()
    trajectories: int = 1000
    prompt_tokens: int = 24
    slots: int = 16

    def __post_init__(self) -> None:
        if bool(self.prompts) == bool(self.texts):
            raise SpecError(
                "trajectories need prompts",
                expected="--prompts FILE or --text FILE, one of the two",
                got="both" if self.prompts else "neither",
                remedy="give prompts like those the deployment will see",
            )
        if self.trajectories < 1 or self.prompt_tokens < 1 or not 1 <= self.slots <= 256:
            raise SpecError(
                "recording settings out of range",
                expected="trajectories ≥ 1, prompt tokens ≥ 1, slots 1 to 256",
                got=f"{self.trajectories}, {self.prompt_tokens}, {self.slots}",
                remedy="correct the option",
            )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "model": self.model.text}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RecordTrajectories:
        return cls(
            **{
                **data,
                "model": ModelSpec.parse(data["model"]),
                "sampling": Sampling(**data["sampling"]),
                "texts": tuple(data["texts"]),
            }
        )

    @property
    def is_server(self) -> bool:
        """Whether the model is asked over HTTP."""
        return self.model.path.startswith(("http://", "https://"))


def fingerprint_of(engine: Engine, sampling: Sampling) -> Fingerprint:
    """The deployment an engine is. Settings are part of it, but for the number of threads."""
    info = engine.info
    settings = {key: value for key, value in info.settings.items() if key != "n_threads"}
    return Fingerprint(
        model=info.fingerprint,
        quantization="+".join(info.weights.types) or "unknown",
        engine=info.engine,
        engine_version=f"{info.build}; {json.dumps(settings, sort_keys=True)}",
        hardware=f"{info.device}: {processor()}",
        stage=sampling.stage,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        horizon=sampling.horizon,
    )


def read_prompts(path: str) -> list[str]:
    """Prompts of a file: one a line, or JSON lines with a string "prompt".

    Raises:
        CorpusError: missing, empty, or a line that is no prompt.
    """
    text = read_corpus(path).raw if not path.lower().endswith(".jsonl") else _raw(path)
    lines = [line for line in text.split("\n") if line.strip()]
    if not path.lower().endswith(".jsonl"):
        return lines
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line)["prompt"])
            if not isinstance(found[-1], str):
                raise TypeError("prompt is no string")
        except (ValueError, KeyError, TypeError) as problem:
            raise CorpusError(
                f"line {number} of '{path}' is no prompt",
                expected='a JSON object with a string "prompt"',
                got=f"{problem}",
                remedy="mend or remove the line",
            ) from None
    if not found:
        raise CorpusError(f"'{path}' is empty", expected="prompts", got="no line", remedy="give prompts")
    return found


def _raw(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise CorpusError(
            f"cannot read '{path}'", expected="a UTF-8 file", got=str(problem), remedy="check the path"
        ) from None


def chosen_prompts(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` prompts in random order: each at most once where there are enough, else drawn with replacement."""
    draws = np.random.default_rng(np.random.SeedSequence([seed, 1 << 30]))
    if count <= len(prompts):
        return [prompts[i] for i in draws.permutation(len(prompts))[:count]]
    return [prompts[i] for i in draws.integers(0, len(prompts), count)]


def record_trajectories(spec: RecordTrajectories, place: Path, emit: Emit) -> Path:
    """Record into ``place``, continuing where its journal ends; the finished file.

    Raises:
        QuantvaneError: what went wrong; finished units stay in the journal. OutputError: another recording is there.
    """
    target = place / f"{spec.name}.parquet"
    held = place / f"{spec.name}.json"
    identity = canonical_hash({**spec.to_dict(), "slots": spec.slots})
    make_directory(place)
    if held.exists() and read_json(held)["hash"] != identity:
        raise OutputError(
            f"'{place}' holds another recording of '{spec.name}'",
            expected="the same model, prompts and sampling",
            got="others",
            remedy="choose another --out, or remove that directory to record again",
        )
    write_json(held, {"hash": identity, "spec": spec.to_dict()})
    if target.exists():
        return target
    emit({"event": "loading", "model": spec.model.stem})
    journal_path = place / f"{spec.name}.journal"
    done, _ = journal_trajectories(journal_path)
    source = _from_server if spec.is_server else _from_engine
    fingerprint, units = source(spec, len(done))
    progress = {"event": "progress", "job": spec.name, "total": spec.trajectories, "models": 1, "unit": "trajectories"}
    emit({**progress, "done": len(done)})
    with Journal(journal_path) as journal:
        for unit in units:
            journal.append([trajectory_batch(unit, len(done))])
            done += unit
            emit({**progress, "done": len(done)})
    write_trajectories(target, done, {"fingerprint": asdict(fingerprint), "spec": spec.to_dict()})
    journal_path.unlink(missing_ok=True)
    return target


def _from_engine(spec: RecordTrajectories, done: int) -> tuple[Fingerprint, Iterator[list[FloatArray]]]:
    engine = open_engine(spec.model, 512)
    return fingerprint_of(engine, spec.sampling), _engine_units(spec, engine, done)


def _engine_units(spec: RecordTrajectories, engine: Engine, done: int) -> Iterator[list[FloatArray]]:
    try:
        prompts = engine_prompts(spec, engine)
        context = max(len(p) for p in prompts) + spec.sampling.horizon
        decoder = open_decoder(engine, context, spec.slots)
        try:
            # The same prompts go together in every run: how many do changes rounding, and so what is drawn.
            for at in range(0, len(prompts), decoder.slots):
                if at >= done:
                    yield generate_group(decoder, prompts[at : at + decoder.slots], at, spec.sampling)
        finally:
            decoder.close()
    finally:
        engine.close()


def engine_prompts(spec: RecordTrajectories, engine: Engine) -> list[Tokens]:
    """The prompts of a recording as tokens."""
    seed = spec.sampling.seed
    if spec.texts:
        documents = [text for path in spec.texts for text in read_corpus(path).documents]
        return prompts_of_text(engine, documents, spec.trajectories, spec.prompt_tokens, seed)
    texts = chosen_prompts(read_prompts(spec.prompts), spec.trajectories, seed)
    return [engine.tokenize(text, special=True, add_bos=engine.vocabulary.add_bos) for text in texts]


_SERVER_SETTINGS: dict[str, Setting] = {
    "chat": Setting(True, boolean, "ask /v1/chat/completions, a prompt being one user message; else /v1/completions"),
    "model": Setting("", str, "the model to ask for; the first one served by default"),
}


def _from_server(spec: RecordTrajectories, done: int) -> tuple[Fingerprint, Iterator[list[FloatArray]]]:
    """What a server says: `quantvane.monitor.upstream` asks it and yields one list of observations a prompt.

    The key of a server that wants one is read from the environment variable ``QUANTVANE_UPSTREAM_KEY``.
    """
    if spec.texts or not spec.sampling.top_k:
        raise SpecError(
            "a server is asked with prompts, for its most probable tokens",
            expected="--prompts FILE and --top-k 1 or more",
            got="--text" if spec.texts else "--top-k 0",
            remedy='write the prompts one a line, or as JSON lines with a "prompt"',
        )
    upstream = import_module("quantvane.monitor.upstream")  # it brings an HTTP client
    given = read_settings("server", _SERVER_SETTINGS, dict(spec.model.settings))
    how, url = spec.sampling, spec.model.path
    facts = asyncio.run(_facts(upstream, url, os.environ.get(SERVER_KEY, "")))
    if facts.stage and facts.stage != how.stage:
        raise SpecError(
            "the server's log-probabilities are of another stage",
            expected=f"--stage {facts.stage}",
            got=f"--stage {how.stage}",
            remedy="name the server's own stage",
        )
    name = given["model"] or (facts.models[0] if facts.models else "")
    fingerprint = Fingerprint(
        model=name, quantization=upstream.quantization_of(f"{facts.path} {name}") or "unknown",
        engine=facts.server or "unknown", engine_version=facts.version or "unknown", hardware="unknown",
        stage=how.stage, temperature=how.temperature, top_k=how.top_k, horizon=how.horizon,
    )  # fmt: skip
    generation = upstream.Generation(
        k=how.top_k, max_tokens=how.horizon, temperature=how.temperature, chat=given["chat"], model=name,
        key=os.environ.get(SERVER_KEY, ""), seed=how.seed * 1_000_003 + done, parallel=spec.slots,
    )  # fmt: skip
    prompts = chosen_prompts(read_prompts(spec.prompts), spec.trajectories, how.seed)
    return fingerprint, _server_units(upstream.collect(url, prompts[done:], generation), spec.slots)


async def _facts(upstream: Any, url: str, key: str) -> Any:
    base = url.rstrip("/").removesuffix("/v1")
    try:
        async with upstream.open_session() as session:
            return await upstream.learn(session, base, key)
    except (OSError, TimeoutError) as problem:  # the client's own errors are of these kinds
        raise EngineError(
            f"the server at {base} cannot be reached",
            expected="an answer",
            got=type(problem).__name__,
            remedy="start it, or correct the address",
        ) from None


def _server_units(streams: Iterator[list[Observation | None]], size: int) -> Iterator[list[FloatArray]]:
    unit: list[FloatArray] = []
    for stream in streams:
        # A stream in which nothing came still is a trajectory: one step that was not observed.
        unit.append(measured_rows(stream or [None]))
        if len(unit) == size:
            yield unit
            unit = []
    if unit:
        yield unit
