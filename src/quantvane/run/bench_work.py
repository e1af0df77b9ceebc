"""Running the tasks: models and task engine in, journals out. Runs inside a worker process."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.base import Engine
from quantvane.engines.decoding import Decoder, open_decoder
from quantvane.engines.registry import floor_variation, open_engine
from quantvane.errors import SpecError
from quantvane.run.bench_plan import FLOOR, REFERENCE, BenchSpec, jobs_of
from quantvane.run.measure import Emit, add_model, agree, info_record, processor
from quantvane.run.prepare import check_vocabulary
from quantvane.spec import ModelSpec, canonical_hash, slug
from quantvane.stats.sequential import betting
from quantvane.store.atomic import make_directory
from quantvane.store.journal import Journal, read_journal
from quantvane.store.manifest import package_versions
from quantvane.store.outcomes import outcome_batch
from quantvane.tasks.agreement import Agreement
from quantvane.tasks.cost import CallCost, measure_cost
from quantvane.tasks.evaluate import Item, ItemKey, Stored, evaluate
from quantvane.tasks.generation import generate
from quantvane.tasks.greedy import NO_DRAFT, shape_noise
from quantvane.tasks.harness import HarnessTask, load_tasks
from quantvane.tasks.lm_eval_model import EngineLM, key_of, reading_of

__all__ = ["bench_journal", "bench_models", "item_order"]

_UNIT, _UNIT_WATCHED = 512, 64  # items that are computed and stored as a whole
_NOISE_ITEMS = 32
_CALIBRATED = ("noise", "call_cost")  # what is measured once per candidate and kept


def bench_journal(out: Path, name: str) -> Path:
    """Where a model's finished items are kept."""
    return out / "journal" / f"{slug(name)}.journal"


def item_order(tasks: Sequence[HarnessTask], spec: BenchSpec) -> list[ItemKey]:
    """All items: task by task, or in an order drawn by the seed where a run may stop early."""
    keys = [(task.name, document) for task in tasks for document in sorted(task.instances)]
    if spec.until_decided:
        order = np.random.default_rng(spec.seed).permutation(len(keys))
        keys = [keys[i] for i in order]
    return keys


class _Model:
    """An opened model with its harness interface."""

    def __init__(self, spec: ModelSpec, bench: BenchSpec, context: int, reference: Decoder | None) -> None:
        self.engine: Engine = open_engine(spec, context)
        try:
            seconds = bench.seconds or float("inf")
            self.lm = EngineLM(
                self.engine, context=context, slots=bench.slots, reference=reference, seconds=seconds,
                serial=bench.one_at_a_time, markup=bench.chat_template,
            )  # fmt: skip
        except BaseException:
            self.engine.close()
            raise

    def close(self) -> None:
        self.lm.close()
        self.engine.close()


class _Bench:
    """A run in progress."""

    def __init__(self, spec: BenchSpec, out: Path, emit: Emit, template: Callable[..., str] | None) -> None:
        self.spec, self.out, self.emit = spec, out, emit
        found = load_tasks(
            spec.tasks,
            limit=spec.limit,
            fewshot=spec.fewshot,
            metrics=dict(spec.metrics),
            filters=dict(spec.filters),
            template=template,
        )
        self.tasks = {task.name: task for task in found}
        keys = item_order(found, spec)
        size = _UNIT_WATCHED if spec.until_decided else _UNIT
        self.units = [keys[at : at + size] for at in range(0, len(keys), size)]
        self.items = len(keys)
        self.stored: dict[ItemKey, Stored] = {}
        self.right: dict[ItemKey, bool] = {}
        self.context = 0

    @contextmanager
    def model(self, name: str, spec: ModelSpec, reference: Decoder | None) -> Iterator[_Model]:
        self.emit({"event": "loading", "model": name})
        model = _Model(spec, self.spec, self.context, reference)
        try:
            yield model
        finally:
            model.close()

    def remember(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep the reference's answers for replay and for the items' divergence."""
        for row in rows:
            key = (row["task"], row["item"])
            self.right[key] = bool(row["correct"])
            if row["tokens"]:
                self.stored[key] = Stored(np.array(row["tokens"], np.int32), bool(row["correct"]))

    def progress(self, name: str, unit: int) -> None:
        done = sum(map(len, self.units[:unit]))
        event = {"event": "progress", "job": name, "done": done, "total": self.items, "models": 1, "unit": "items"}
        self.emit(event)


def bench_models(spec: BenchSpec, out: Path, emit: Emit) -> None:
    """Run every model on every item, continuing where the journals end.

    Raises:
        QuantvaneError: the first thing that went wrong; finished items stay in the journals.
    """
    make_directory(out)
    emit({"event": "loading", "model": REFERENCE})
    engine = open_engine(spec.reference, 512)
    try:
        emit({"event": "loading", "model": "the tasks"})
        template = EngineLM(engine, context=8, slots=1).apply_chat_template if spec.chat_template else None
        run = _Bench(spec, out, emit, template)
        run.context = spec.context or _longest(run, engine)
        agree(out, _manifest(run, engine))
    finally:
        engine.close()
    with run.model(REFERENCE, spec.reference, None) as reference, Journal(bench_journal(out, REFERENCE)) as journal:
        for frame in read_journal(bench_journal(out, REFERENCE)):
            run.remember(frame[0].to_pylist())

        def reference_unit(unit: int) -> None:
            while journal.frames <= unit:
                run.progress(REFERENCE, journal.frames)
                run.remember(_unit(run, reference, run.units[journal.frames], journal, {}, replay=False))

        if not spec.until_decided:
            reference_unit(len(run.units) - 1)
        for name in jobs_of(spec)[1:]:
            model = _floor(spec.reference) if name == FLOOR else spec.candidates[spec.names.index(name)]
            _candidate(run, name, model, reference, reference_unit)


def _floor(reference: ModelSpec) -> ModelSpec:
    varied = {**dict(reference.settings), **floor_variation(reference)}
    return replace(reference, settings=tuple(varied.items()))


def _candidate(run: _Bench, name: str, model: ModelSpec, reference: _Model, reference_unit: Any) -> None:
    spec = run.spec
    known: dict[str, Any] = {}
    held: list[dict[str, Any]] = []
    for frame in read_journal(bench_journal(run.out, name)):
        held += frame[0].to_pylist()
        known |= {fact: value for fact, value in _facts(frame[0]).items() if fact in _CALIBRATED}
    done = sum(1 for _ in read_journal(bench_journal(run.out, name)))
    if done == len(run.units) or _decided(run, name, held):
        return
    with (
        run.model(name, model, reference.lm.decoder if spec.measured else None) as candidate,
        Journal(bench_journal(run.out, name)) as journal,
    ):
        if spec.measured or spec.replay:
            samples = [str(group[0].args[0]) for group in _first_requests(run)]
            check_vocabulary(reference.engine, candidate.engine, name, samples)
        add_model(run.out, "floor" if name == FLOOR else "candidates", info_record(name, model, candidate.engine.info))
        for unit in range(journal.frames, len(run.units)):
            reference_unit(unit)
            run.progress(name, unit)
            if spec.replay and not known:
                known = _calibration(run, candidate, run.units[unit])
            if "call_cost" in known:
                candidate.lm.cost = CallCost.from_dict(known["call_cost"])
            held += _unit(run, candidate, run.units[unit], journal, known, replay=spec.replay)
            if _decided(run, name, held):
                break
        run.progress(name, journal.frames)


def _first_requests(run: _Bench) -> Iterator[Any]:
    for task in run.tasks.values():
        yield next(iter(task.instances.values()))


def _unit(
    run: _Bench, model: _Model, keys: Sequence[ItemKey], journal: Journal, known: dict[str, Any], *, replay: bool
) -> list[dict[str, Any]]:
    lm, before, begun = model.lm, model.lm.effort, time.monotonic()
    stored = {key: run.stored[key] for key in keys if key in run.stored}
    items = evaluate(
        lm, run.tasks, keys, stored=stored, replay=replay, measured=run.spec.measured, noise=known.get("noise", 0.0)
    )
    lm.scores.clear()
    lm.answers.clear()
    rows = [_row(item) for item in items]
    facts = {
        "seconds": time.monotonic() - begun,
        "calls": lm.effort.calls - before.calls,
        "steps": lm.effort.steps - before.steps,
        "tokens": lm.effort.tokens - before.tokens,
        "ahead": lm.effort.ahead - before.ahead,
        "vain": lm.effort.vain - before.vain,
        **known,
    }
    journal.append([outcome_batch(rows, facts)])
    return rows


def _row(item: Item) -> dict[str, Any]:
    return {name: getattr(item, name) for name in Item.__dataclass_fields__} | {"tokens": item.tokens.tolist()}


def _facts(batch: Any) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads((batch.schema.metadata or {}).get(b"facts", b"{}"))
    return found


def _calibration(run: _Bench, model: _Model, keys: Sequence[ItemKey]) -> dict[str, Any]:
    """What replay has to know of a model, from some answers of a unit; empty where it has none.

    ``call_cost``: of its decoder's calls (`CallCost`). ``noise``: of the shape of batches, between the answers
    generated plainly one by one and replayed together.
    """
    requests = []
    for key in keys:
        first = run.tasks[key[0]].instances[key[1]][0]
        if first.request_type == "generate_until" and key in run.stored:
            requests.append((key, first))
    if not requests:
        return {}
    chosen = requests[:: max(1, len(requests) // _NOISE_ITEMS)][:_NOISE_ITEMS]
    lm = model.lm
    lm.drafts = {key_of(first): run.stored[key].tokens for key, first in chosen}
    drafted = [lm.request(first) for _, first in chosen]
    cost = measure_cost(lm.decoder, drafted, serial=run.spec.one_at_a_time)
    plain = [replace(request, draft=NO_DRAFT) for request in drafted]
    decoder = open_decoder(model.engine, run.context, 1)
    try:
        one_by_one, _ = generate(decoder, plain, lm.spell)
    finally:
        decoder.close()
    together, _ = generate(lm.decoder, drafted, lm.spell, fit=Agreement(cost))
    return {"noise": shape_noise(one_by_one, together), "call_cost": cost.to_dict()}


def _decided(run: _Bench, name: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a candidate's confidence sequence has decided; the floor and plain runs never stop early."""
    spec = run.spec
    if not spec.until_decided or not rows or name == FLOOR:
        return False
    keys = [(row["task"], row["item"]) for row in rows]
    if any(key not in run.right for key in keys):
        return False
    ref = np.array([run.right[key] for key in keys], bool)
    cand = np.array([bool(row["correct"]) for row in rows], bool)
    return betting(ref, cand, spec.margin, alpha=spec.each_alpha).decided_at is not None


def _longest(run: _Bench, engine: Engine) -> int:
    """Tokens of the longest request with its answer, but no more than the model was trained for.

    A text has at most as many tokens as bytes, which saves tokenizing most of them.
    """
    texts: list[tuple[int, str, int]] = []
    for task in run.tasks.values():
        for group in task.instances.values():
            for instance in group:
                second = instance.args[1] if len(instance.args) > 1 else ""
                cap = reading_of(second)[0] if isinstance(second, dict) else 0
                text = instance.args[0] + (second if isinstance(second, str) else "")
                texts.append((len(text.encode()) + cap + 2, text, cap))
    longest = 0
    for bound, text, cap in sorted(texts, key=lambda t: -t[0]):
        if bound <= longest:
            break
        longest = max(longest, len(engine.tokenize(text)) + cap + 2)
    most = engine.info.context_trained or longest
    if longest < 1:
        raise SpecError("the tasks hold no requests", expected="items", got="none", remedy="check --tasks and --limit")
    return int(min(longest, most))


def _manifest(run: _Bench, reference: Engine) -> dict[str, Any]:
    spec = run.spec
    protocol = {
        "tasks": [
            {
                "name": task.name,
                "metric": task.metric,
                "filter": task.filter,
                "items": len(task.instances),
                "requests": canonical_hash(
                    [[str(a) for a in i.args] for key in sorted(task.instances) for i in task.instances[key]]
                ),
            }
            for task in run.tasks.values()
        ],
        "context": run.context,
        "order": f"random, seed {spec.seed}" if spec.until_decided else "as given",
        "replay": spec.replay,
        "chat_template": canonical_hash(reference.chat_template) if spec.chat_template else None,
    }
    return {
        "schema": 1,
        "command": "bench",
        "state": "measuring",
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "protocol": {"hash": canonical_hash(protocol), **protocol},
        "items": run.items,
        "reference": info_record(spec.reference.stem, spec.reference, reference.info),
        "candidates": {},
        "floor": {},
        "versions": package_versions() | _harness_version(),
        "hardware": {"machine": platform.machine(), "processor": processor(), "system": platform.system()},
    }


def _harness_version() -> dict[str, str]:
    from importlib.metadata import version

    return {"lm-eval": version("lm-eval")}
