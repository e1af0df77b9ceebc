"""Trajectories: a model answers prompts under explicit seeds, and every token's distribution is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine
from quantvane.engines.decoding import Decoder, Feed, Tokens
from quantvane.errors import CorpusError, EngineError, SpecError
from quantvane.fisher import lambda_max
from quantvane.monitor.records import Observation
from quantvane.monitor.statistic import KL_CAP
from quantvane.monitor.trajectories import COLUMNS, measured_rows
from quantvane.types import FloatArray

__all__ = ["Sampling", "generate_group", "log_softmax", "observe", "prompts_of_text", "random_prompts"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn and looked at.

    Attributes:
        temperature: 0 for the most probable token. top_k: entries seen of each distribution; 0 for all of it.
        horizon: tokens of a trajectory, fewer where the model ends its text. stage: "raw" or "sampled", see
            `quantvane.monitor.calibration.Fingerprint`. seed: trajectory i draws from ``SeedSequence([seed, i])``.
    """

    temperature: float = 1.0
    top_k: int = 20
    horizon: int = 64
    stage: str = "raw"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0 or self.top_k < 0 or self.horizon < 1 or self.stage not in (
            "raw", "sampled",
        ):  # fmt: skip
            raise SpecError(
                "sampling settings out of range",
                expected='0 ≤ temperature ≤ 100, top_k ≥ 0, horizon ≥ 1, stage "raw" or "sampled"',
                got=f"temperature {self.temperature!r}, top_k {self.top_k!r}, horizon {self.horizon!r}, {self.stage!r}",
                remedy="correct the option",
            )
        if self.stage == "sampled" and self.temperature == 0.0:
            raise SpecError(
                "at temperature 0 the sampled distribution is one token",
                expected='stage "raw", or a temperature above 0',
                got="stage sampled, temperature 0",
                remedy="look at the raw distribution",
            )


def log_softmax(logits: npt.NDArray[np.float32] | FloatArray) -> FloatArray:
    """(n, V) → (n, V) float64 log-probabilities.

    Raises:
        EngineError: NaN among the logits.
    """
    x = logits.astype(np.float64)
    top = x.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise EngineError("logits are NaN", expected="finite logits", got="NaN or infinity", remedy="check the model")
    x -= top
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def observe(logp: FloatArray, chosen: int, top_k: int) -> Observation:
    """One distribution (V,) as an API that returns ``top_k`` entries would show it; 0 for all."""
    v = len(logp)
    if top_k == 0 or top_k >= v:
        order = np.argsort(-logp, kind="stable")
        return Observation(tuple(logp[order].tolist()), tuple(order.tolist()), float(logp[chosen]), complete=True)
    some = np.argpartition(-logp, top_k - 1)[:top_k]
    order = some[np.argsort(-logp[some], kind="stable")]
    return Observation(tuple(logp[order].tolist()), tuple(order.tolist()), float(logp[chosen]))


@dataclass(slots=True)
class _Live:
    """A trajectory at work."""

    slot: int
    held: int
    draws: np.random.Generator
    observations: list[Observation]
    rows: list[tuple[float, ...]]
    before: FloatArray | None = None
    token: int = -1
    done: bool = False


def generate_group(
    decoder: Decoder, prompts: Sequence[Tokens], first: int, sampling: Sampling
) -> list[FloatArray]:
    """Trajectories number ``first``, ``first`` + 1, … for at most ``decoder.slots`` prompts, together.

    Returns:
        (T, 5) each, columns of `quantvane.monitor.trajectories`, T ≤ horizon.

    Raises:
        EngineError: decoding failed, or NaN logits.
    """
    live = [
        _Live(slot, 0, np.random.default_rng(np.random.SeedSequence([sampling.seed, first + slot])), [], [])
        for slot in range(len(prompts))
    ]
    try:
        for batch in _prompt_batches(prompts, decoder):
            logits = decoder.decode(batch)
            ended = [feed.slot for feed in batch if feed.rows]
            _take([live[slot] for slot in ended], logits, sampling, decoder.ends)
        for one, prompt in zip(live, prompts, strict=True):
            one.held = len(prompt)
        for _ in range(sampling.horizon - 1):
            going = [one for one in live if not one.done]
            if not going:
                break
            feeds = [Feed(one.slot, one.held, np.array([one.token], np.int32), 1) for one in going]
            logits = decoder.decode(feeds)
            for one in going:
                one.held += 1
            _take(going, logits, sampling, decoder.ends)
    finally:
        for slot in range(len(prompts)):
            decoder.drop(slot, 0)
    if sampling.top_k:
        return [measured_rows(one.observations) for one in live]
    return [np.array(one.rows, np.float64).reshape(-1, len(COLUMNS)) for one in live]


def _prompt_batches(prompts: Sequence[Tokens], decoder: Decoder) -> Iterator[list[Feed]]:
    """The prompts, many to a call, cut where one does not fit; logits at each one's last token."""
    batch: list[Feed] = []
    room = decoder.capacity
    for slot, prompt in enumerate(prompts):
        at = 0
        while at < len(prompt):
            if room == 0:
                yield batch
                batch, room = [], decoder.capacity
            piece = prompt[at : at + room]
            last = at + len(piece) == len(prompt)
            batch.append(Feed(slot, at, piece, int(last)))
            at += len(piece)
            room -= len(piece)
    if batch:
        yield batch


def _take(going: Sequence[_Live], logits: npt.NDArray[np.float32], sampling: Sampling, ends: frozenset[int]) -> None:
    """Look at each distribution and draw from it."""
    raw = log_softmax(logits)
    t = sampling.temperature
    drawn = raw if t in (0.0, 1.0) else log_softmax(raw / t)
    seen = raw if sampling.stage == "raw" else drawn
    exact = lambda_max(seen) if sampling.top_k == 0 else None
    for i, one in enumerate(going):
        if t == 0.0:
            token = int(raw[i].argmax())
        else:
            total = np.cumsum(np.exp(drawn[i]))
            token = int(min(np.searchsorted(total, one.draws.random() * total[-1], side="right"), len(total) - 1))
        if exact is None:
            one.observations.append(observe(seen[i], token, sampling.top_k))
        else:
            p = np.exp(seen[i])
            entropy = float(-(p * np.where(p > 0.0, seen[i], 0.0)).sum())
            kl = np.nan if one.before is None else min(float(max((p * (seen[i] - one.before)).sum(), 0.0)), KL_CAP)
            one.rows.append((float(exact[i]), float(exact[i]), entropy, kl, -float(seen[i, token])))
            one.before = seen[i]
        one.token = token
        one.done = token in ends


def prompts_of_text(engine: Engine, texts: Sequence[str], count: int, length: int, seed: int) -> list[Tokens]:
    """``count`` prompts of ``length`` tokens from random places of the texts, BOS in front where the model adds it.

    Raises:
        CorpusError: the texts are shorter than one prompt.
    """
    parts = [engine.tokenize(text) for text in texts]
    tokens = np.concatenate(parts) if parts else np.empty(0, np.int32)
    if len(tokens) < length:
        raise CorpusError(
            "the text is shorter than one prompt",
            expected=f"at least {length} tokens",
            got=f"{len(tokens)} tokens",
            remedy="give a longer text, or a smaller --prompt-tokens",
        )
    starts = np.random.default_rng(np.random.SeedSequence([seed, 1 << 30])).integers(0, len(tokens) - length + 1, count)
    return [_with_bos(engine, tokens[start : start + length]) for start in starts]


def random_prompts(engine: Engine, count: int, length: int, seed: int) -> list[Tokens]:
    """Prompts of tokens drawn uniformly from the vocabulary: what no user would send."""
    draws = np.random.default_rng(np.random.SeedSequence([seed, 1 << 29]))
    size = len(engine.vocabulary)
    return [_with_bos(engine, draws.integers(0, size, length).astype(np.int32)) for _ in range(count)]


def _with_bos(engine: Engine, tokens: Tokens) -> Tokens:
    bos = engine.vocabulary.bos
    return np.concatenate([[bos], tokens]).astype(np.int32) if engine.vocabulary.add_bos and bos >= 0 else tokens
