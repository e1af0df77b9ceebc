"""Log-likelihoods of given continuations, many together, and the divergence from a reference at their positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.engines.decoding import Decoder, Feed, Tokens
from quantvane.errors import EngineError
from quantvane.types import FloatArray

__all__ = ["Continuation", "Score", "log_probs", "score"]

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens to be scored behind others: ``tokens[context:]`` given what stands before each; 1 ≤ context < n."""

    tokens: Tokens
    context: int


@dataclass(frozen=True, slots=True)
class Score:
    """One continuation under one model.

    Attributes:
        log_prob: Σ ln p over its tokens, nats. greedy: whether every one of them is the argmax.
        tokens: how many. kld: Σ over its positions of KL(reference ‖ model), nats; NaN without a reference.
        note: why there is no score; "" otherwise.
    """

    log_prob: float
    greedy: bool
    tokens: int
    kld: float = math.nan
    note: str = ""


def log_probs(logits: Logits, targets: npt.NDArray[np.int32]) -> FloatArray:
    """ln p(target) of each row: x_y − max − ln Σ exp(x − max), the sum in float64; (T, V), (T,) -> (T,).

    Raises:
        EngineError: NaN.
    """
    top = logits.max(axis=1)
    total = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    out: FloatArray = logits[np.arange(len(logits)), targets].astype(np.float64) - top - np.log(total)
    if np.isnan(out).any():
        raise EngineError(
            "logits are NaN",
            expected="finite logits",
            got=f"NaN in {int(np.isnan(out).sum())} of {len(out)} rows",
            remedy="the model file may be damaged, or the settings overflow (flash_attn=off, cache_type_k=f32)",
        )
    return out


def _calls(items: Sequence[Continuation], decoder: Decoder, width: int) -> Iterator[list[tuple[int, int, Feed]]]:
    """Feeds of each decode call as (item, first target, feed): whole sequences together, a long one in pieces alone.

    A sequence longer than one call, or with more rows than one call gives, is cut; its slot is 0.
    """
    call: list[tuple[int, int, Feed]] = []
    room, rows = decoder.capacity, min(decoder.rows, width)
    for index, item in enumerate(items):
        fed, wanted = len(item.tokens) - 1, len(item.tokens) - item.context
        if call and (len(call) == decoder.slots or fed > room or wanted > rows):
            yield call
            call, room, rows = [], decoder.capacity, min(decoder.rows, width)
        if fed <= room and wanted <= rows:
            call.append((index, item.context, Feed(len(call), 0, item.tokens[:-1], wanted)))
            room, rows = room - fed, rows - wanted
            continue
        at = 0
        while at < fed:
            # up to the first wanted row in whole pieces, then at most ``rows`` rows a call
            end = min(at + room, item.context - 1 if at < item.context - 1 else at + rows, fed)
            count = end - at if at >= item.context - 1 else 0
            yield [(index, at + 1, Feed(0, at, item.tokens[at:end], count))]
            at = end
    if call:
        yield call


def score(
    decoder: Decoder, items: Sequence[Continuation], reference: Decoder | None = None, *, backend: str = "numba"
) -> list[Score]:
    """Score every continuation; with a reference also the KL divergence at its positions.

    Args:
        reference: a decoder of the reference with the same vocabulary; it reads the same tokens in lockstep.
        backend: kernel of the divergence.

    Raises:
        EngineError: decoding failed or gave NaN.
    """
    sums, hits, klds = np.zeros(len(items)), np.ones(len(items), bool), np.zeros(len(items))
    notes = [_note(item, decoder, reference) for item in items]
    fitting = [i for i, note in enumerate(notes) if not note]
    decoders = [decoder] if reference is None else [decoder, reference]
    narrow = min(decoders, key=lambda d: (d.capacity, d.slots))
    width = min(d.rows for d in decoders)
    for call in _calls([items[i] for i in fitting], narrow, width):
        feeds = [feed for _, _, feed in call]
        owner = np.repeat([fitting[index] for index, _, _ in call], [feed.rows for feed in feeds])
        targets = np.concatenate(
            [items[fitting[index]].tokens[first : first + feed.rows] for index, first, feed in call]
        ).astype(np.int32)
        logits = decoder.decode(feeds)
        theirs = reference.decode(feeds) if reference is not None else None
        if len(targets):
            np.add.at(sums, owner, log_probs(logits, targets))
            np.logical_and.at(hits, owner, logits.argmax(axis=1) == targets)
            if theirs is not None:
                np.add.at(klds, owner, _divergence(theirs, logits, targets, backend))
        _free(decoders, call, items, fitting)
    return [
        Score(float(sums[i]), bool(hits[i]), n, float(klds[i]) if reference is not None else math.nan)
        if not notes[i]
        else Score(-math.inf, False, n, math.nan, notes[i])
        for i, n in enumerate(len(item.tokens) - item.context for item in items)
    ]


def _note(item: Continuation, *decoders: Decoder | None) -> str:
    context = min(d.context for d in decoders if d is not None)
    if not 1 <= item.context < len(item.tokens):
        return "there is nothing to score, or nothing before it"
    if len(item.tokens) > context:
        return f"{len(item.tokens)} tokens do not fit a context of {context}"
    return ""


def _free(
    decoders: Sequence[Decoder],
    call: Sequence[tuple[int, int, Feed]],
    items: Sequence[Continuation],
    fitting: Sequence[int],
) -> None:
    for index, _, feed in call:
        if feed.start + len(feed.tokens) == len(items[fitting[index]].tokens) - 1:
            for decoder in decoders:
                decoder.drop(feed.slot, 0)


def _divergence(reference: Logits, logits: Logits, targets: npt.NDArray[np.int32], backend: str) -> FloatArray:
    from quantvane.displacement import token_metrics

    found: FloatArray = token_metrics(reference, logits, targets, backend=backend).kld
    return found
