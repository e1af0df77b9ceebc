"""One model on some items of lm-eval tasks: the harness asks and judges, the engine answers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quantvane.engines.decoding import Tokens
from quantvane.errors import DataError
from quantvane.tasks.greedy import NO_DRAFT, Answer, ambiguous
from quantvane.tasks.harness import HarnessTask
from quantvane.tasks.lm_eval_model import EngineLM, Key, key_of
from quantvane.tasks.scoring import Continuation

__all__ = ["Item", "ItemKey", "Stored", "evaluate"]

ItemKey = tuple[str, int]
_INVALID = "[invalid]"  # the harness's word for an answer in which its pattern found nothing


@dataclass(frozen=True, slots=True)
class Stored:
    """What is kept of the reference's answer to a generation item: its tokens, and whether it was right."""

    tokens: Tokens
    correct: bool


@dataclass(frozen=True, slots=True)
class Item:
    """One model's outcome on one item.

    Attributes:
        task, item: the task and the document's number. correct: as the harness judged; None where it could not.
        state: a word of `quantvane.direction.STATES`. answer: number of the likeliest choice, or the text.
        prompt: hash of the first request; settings: of generation, as JSON.
        finish: of a generated answer, see `Answer.finish`; "" for choices. tokens: as generated, (n,) int32.
        margin: ln p(right) − largest ln p(wrong) of choices, nats; NaN else.
        log_prob: ln p of the right answer to a generation item (the reference's own answer where that was right, else
            the task's target); NaN else.
        kld: mean over the scored positions against the reference, nats: those of all choices, or of the
            reference's answer; NaN for the reference itself and where it was not asked for.
        scored: number of these positions. agreed, divergence: of a replayed answer, see `Answer`.
        unsure: positions that another shape of batch could have decided otherwise. note: why there is no score.
    """

    task: str
    item: int
    correct: bool | None
    state: str
    answer: str | None
    prompt: str
    settings: str
    finish: str = ""
    tokens: Tokens = field(default_factory=lambda: NO_DRAFT)
    margin: float = math.nan
    log_prob: float = math.nan
    kld: float = math.nan
    scored: int = 0
    agreed: int = 0
    divergence: int | None = None
    unsure: tuple[int, ...] = ()
    note: str = ""


def evaluate(
    lm: EngineLM,
    tasks: Mapping[str, HarnessTask],
    keys: Sequence[ItemKey],
    *,
    stored: Mapping[ItemKey, Stored] | None = None,
    replay: bool = False,
    measured: bool = True,
    noise: float = 0.0,
) -> list[Item]:
    """Put items to a model and judge its answers.

    Args:
        keys: (task, document) of each item. stored: the reference's answers to generation items.
        replay: verify the stored answers instead of generating from nothing.
        measured: also compute ``log_prob`` and ``kld`` of generation items, at one more prefill each.
        noise: margins up to this are listed as ``unsure``; from `shape_noise`.

    Returns:
        one `Item` for each key, in order.

    Raises:
        EngineError: the engine failed. DataError: a task whose metric is not right-or-wrong.
    """
    held = stored or {}
    chosen = [(key, tasks[key[0]].instances[key[1]]) for key in keys]
    lm.drafts = (
        {key_of(i): held[key].tokens for key, group in chosen if key in held for i in group} if replay else {}
    )
    by_type: dict[str, list[Any]] = {}
    for _, group in chosen:
        for instance in group:
            instance.resps, instance.filtered_resps = [], {}
            by_type.setdefault(instance.request_type, []).append(instance)
    for kind, instances in by_type.items():
        # Greedy answers are the same every time: one is computed, and repeated where the task wants several.
        for instance, response in zip(instances, getattr(lm, kind)(instances), strict=True):
            instance.resps = [response] * max(1, instance.repeats or 1)
    found: dict[ItemKey, Item] = {}
    for name in dict.fromkeys(key[0] for key in keys):
        groups = [(key, group) for key, group in chosen if key[0] == name]
        task = tasks[name].task
        task._instances = [instance for _, group in groups for instance in group]
        task.apply_filters()
        for key, group in groups:
            found[key] = _judge(lm, tasks[name], key, group, noise)
    items = [found[key] for key in keys]
    return _measured(lm, tasks, chosen, items, held) if measured else items


def _measured(
    lm: EngineLM,
    tasks: Mapping[str, HarnessTask],
    chosen: Sequence[tuple[ItemKey, Sequence[Any]]],
    items: Sequence[Item],
    stored: Mapping[ItemKey, Stored],
) -> list[Item]:
    """The items with ``log_prob`` and ``kld`` of generated answers filled in."""
    jobs: list[Continuation] = []
    places: dict[int, tuple[int | None, int | None]] = {}
    for number, ((key, group), item) in enumerate(zip(chosen, items, strict=True)):
        first = group[0]
        if first.request_type != "generate_until":
            continue
        # The reference's own answer; while the reference itself is judged, that is this one.
        answer = stored.get(key) or (None if item.state == "error" else Stored(item.tokens, bool(item.correct)))
        theirs = right = None
        if answer is not None and len(answer.tokens):
            theirs = len(jobs)
            jobs.append(_behind(lm.prompt(first.args[0]), answer.tokens))
        if answer is not None and answer.correct:
            right = theirs
        elif target := _target(tasks[key[0]].task, first.doc):
            right = len(jobs)
            jobs.append(lm.encode_pair(first.args[0], target))
        places[number] = (right, theirs)
    scores = lm.measure(jobs)
    out = list(items)
    for number, (right, theirs) in places.items():
        more: dict[str, Any] = {}
        if right is not None and not scores[right].note:
            more["log_prob"] = scores[right].log_prob
        if theirs is not None and not scores[theirs].note:
            more |= {"kld": scores[theirs].kld / scores[theirs].tokens, "scored": scores[theirs].tokens}
        out[number] = replace(items[number], **more)
    return out


def _behind(prompt: Tokens, answer: Tokens) -> Continuation:
    return Continuation(np.concatenate([prompt, answer]), len(prompt))


def _target(task: Any, doc: Any) -> str:
    """The right answer's text behind the prompt, where the task has exactly one."""
    target = task.doc_to_target(doc)
    if isinstance(target, int) and not isinstance(target, bool) and task.config.doc_to_choice is not None:
        target = task.doc_to_choice(doc)[target]
    return str(task.config.target_delimiter) + target if isinstance(target, str) and target else ""


def _judge(
    lm: EngineLM, task: HarnessTask, key: ItemKey, group: Sequence[Any], noise: float
) -> Item:
    first = group[0]
    keys = [key_of(instance) for instance in group]
    notes = [lm.scores[k].note for k in keys if k in lm.scores] + [lm.answers[k].note for k in keys if k in lm.answers]
    note = next((n for n in notes if n), "")
    prompt = hashlib.sha256("\0".join(str(i.args[0]) for i in group).encode()).hexdigest()
    settings = "" if len(first.args) < 2 or not isinstance(first.args[1], dict) else json.dumps(
        first.args[1], sort_keys=True, ensure_ascii=False
    )  # fmt: skip
    correct: bool | None = None
    if not note:
        results = [instance.filtered_resps[task.filter] for instance in group]
        value = task.task.process_results(first.doc, results).get(task.metric)
        correct = _binary(value, task)
    parts: dict[str, Any] = {}
    answer: str | None
    if first.request_type == "generate_until":
        given: Answer = lm.answers[keys[0]]
        filtered = first.filtered_resps[task.filter]
        answer = filtered if isinstance(filtered, str) else json.dumps(filtered, ensure_ascii=False, default=str)
        state = _state(given, answer, correct)
        parts |= _generated(given, noise)
    else:
        state = "error" if note else "correct" if correct else "wrong"
        answer, more = _chosen(lm, task, first, keys) if not note else (None, {})
        parts |= more
    if state == "error":
        answer = None
    return Item(key[0], key[1], correct, state, answer, prompt, settings, note=note, **parts)


def _binary(value: Any, task: HarnessTask) -> bool:
    if isinstance(value, bool | int | float) or hasattr(value, "item"):
        number = float(value)
        if number in (0.0, 1.0):
            return number == 1.0
    raise DataError(
        f"metric '{task.metric}' of task '{task.name}' does not say right or wrong",
        expected="1 or 0 for each item",
        got=str(value)[:80],
        remedy=f"name another of {', '.join(task.task.aggregation())}: --metric {task.name}=NAME; "
        "for perplexity use quantvane compare",
    )


def _state(given: Answer, answer: str, correct: bool | None) -> str:
    if given.finish in ("error", "timeout"):
        return given.finish
    if answer == _INVALID:
        return "unparsed"
    if given.finish == "length":
        return "truncated"
    return "correct" if correct else "wrong"


def _generated(given: Answer, noise: float) -> dict[str, Any]:
    return {
        "finish": given.finish,
        "tokens": given.tokens,
        "agreed": given.agreed,
        "divergence": given.divergence,
        "unsure": tuple(ambiguous(given, noise)),
    }


def _chosen(lm: EngineLM, task: HarnessTask, first: Any, keys: Sequence[Key]) -> tuple[str | None, dict[str, Any]]:
    """The likeliest choice, and margin and divergence over all of them."""
    scores = [lm.scores[key] for key in keys]
    tokens = sum(s.tokens for s in scores)
    parts: dict[str, Any] = {"kld": sum(s.kld for s in scores) / tokens, "scored": tokens}
    if len(scores) < 2 or task.task.OUTPUT_TYPE != "multiple_choice":
        return (str(scores[0].greedy) if scores else None), parts
    choices = len(task.task.doc_to_choice(first.doc))
    gold = task.task.doc_to_text(first.doc) if task.task.multiple_input else task.task.doc_to_target(first.doc)
    likely = [s.log_prob for s in scores[:choices]]
    if isinstance(gold, str):
        listed = task.task.doc_to_choice(first.doc)
        gold = listed.index(gold) if gold in listed else -1
    if isinstance(gold, int) and 0 <= gold < len(likely):
        parts["margin"] = likely[gold] - max(v for i, v in enumerate(likely) if i != gold)
    return str(likely.index(max(likely))), parts
