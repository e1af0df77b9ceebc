"""The main job: plan, execute, merge, summarise, report.

What the command needs before its child process can start is imported here, the rest where it is used: until the
child runs, every import is waited for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil

from quantvane.engines.registry import RECORDED, check_model, engine_name
from quantvane.errors import CapabilityError, OutputError, QuantvaneError, SpecError
from quantvane.run.cohort import make_cohort
from quantvane.run.local import OnEvent, run_worker
from quantvane.run.plan import CompareSpec, Job, candidate_names, journal_path, plan_jobs
from quantvane.spec import ModelSpec, canonical_hash
from quantvane.store.atomic import make_directory, read_json, to_json, write_json

__all__ = ["Comparison", "compare", "open_run", "run_compare"]



@dataclass(frozen=True, slots=True)
class Comparison:
    """A finished comparison.

    Attributes:
        out: the run directory. summary: the JSON document of ``compare --json``.
    """

    out: Path
    summary: dict[str, Any]

    def to_json(self) -> str:
        """The JSON document as text."""
        return to_json(self.summary)

    def to_arrow(self) -> Any:
        """All token tables in one `pyarrow.Table`, with the candidate's name as first column."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from quantvane.run.finish import token_path

        tables = []
        for entry in self.summary["candidates"]:
            table = pq.read_table(token_path(self.out, entry["name"]))
            names = pa.array([entry["name"]] * table.num_rows, pa.string()).dictionary_encode()
            tables.append(table.add_column(0, "candidate", names))
        return pa.concat_tables(tables).unify_dictionaries()

    def to_pandas(self) -> Any:
        """`to_arrow` as a pandas DataFrame; needs pandas."""
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise CapabilityError(
                "to_pandas() needs pandas", expected="pandas", got="not installed", remedy="pip install pandas"
            ) from None
        return self.to_arrow().to_pandas()


def run_compare(spec: CompareSpec, out: Path, on_event: OnEvent = lambda event: None) -> Comparison:
    """Carry out a spec in a run directory; continues there after an interruption.

    Raises:
        QuantvaneError: what went wrong; what was finished stays for the next attempt.
    """
    for model in (spec.reference, *spec.candidates):
        check_model(model)  # a wrong path or name is refused before anything is loaded or written
    for text in spec.texts:
        _check_readable(text)
    make_directory(out)
    jobs = _plan(out, spec)
    with _Finishing(out, spec, jobs, on_event) as finishing:
        if not is_complete(out):
            request = {
                "task": "measure", "spec": spec.to_dict(), "jobs": [job.to_dict() for job in jobs], "out": str(out),
            }  # fmt: skip
            try:
                run_worker(request, finishing.on_event)
            except QuantvaneError:
                finishing.close()
                _discard_if_empty(out, jobs)
                raise
        on_event({"event": "summarizing"})
        return Comparison(out, finishing.result())


class _Finishing:
    """What follows the measurement, loaded and begun while the worker still measures.

    Attributes:
        on_event: for the worker's events; passes them on.
    """

    def __init__(self, out: Path, spec: CompareSpec, jobs: Sequence[Job], on_event: OnEvent) -> None:
        self._arguments = out, spec, jobs
        self._pass_on = on_event
        self._finisher: Any = None
        self._drawer: Any = None
        self._warm_up = Thread(target=_warm_up, daemon=True)

    def on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "loading" and self._drawer is None:
            self._get_drawer()
            self._warm_up.start()
        elif event["event"] == "measured":
            self._get().measured(event["journal"])
        self._pass_on(event)

    def _get(self) -> Any:
        if self._finisher is None:
            from quantvane.run.finish import Finisher

            # Compiled code runs on one thread pool that takes one caller at a time: the warm-up must be over.
            if self._warm_up.ident is not None:
                self._warm_up.join()
            self._finisher = Finisher(*self._arguments)
        return self._finisher

    def _get_drawer(self) -> Any:
        if self._drawer is None:
            from quantvane.run.drawing import Drawer

            self._drawer = Drawer()
        return self._drawer

    def result(self) -> dict[str, Any]:
        """The summary; it, the tables and the report are written."""
        drawer = self._get_drawer()
        made: dict[str, Any] = self._get().finish()
        drawer.draw(self._arguments[0])
        return made

    def close(self) -> None:
        """Wait for what runs, start nothing more, and end the child that draws."""
        for part in (self._finisher, self._drawer):
            if part is not None:
                part.close()

    def __enter__(self) -> _Finishing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _warm_up() -> None:
    """Load compiled code that the summary needs while the worker loads its models; it needs one processor only."""
    with suppress(Exception):  # what is wrong here will be said where it is needed
        from quantvane.displacement.aggregate import aggregate

        aggregate({"kld": np.arange(64.0)}, np.arange(64) // 4, resamples=200)


def _check_readable(text: str) -> None:
    from quantvane.corpora.text import read_corpus

    read_corpus(text)


def _plan(out: Path, spec: CompareSpec) -> list[Job]:
    """The jobs of this directory: those it was begun with, or new ones.

    How candidates are grouped depends on the memory free at the time, so a continued run keeps its grouping.
    """
    path = out / "plan.json"
    if not path.exists():
        if (out / "manifest.json").exists() or (out / "tokens").exists():
            raise OutputError(
                f"'{out}' holds files of something else",
                expected="an empty directory or a run directory",
                got="tables without plan.json",
                remedy="choose another --out",
            )
        jobs = plan_jobs(spec, psutil.virtual_memory().available)
        write_json(path, {"schema": 1, "spec": spec.to_dict(), "jobs": [job.to_dict() for job in jobs]})
        return jobs
    held = read_json(path)
    mine = json.loads(to_json(spec.to_dict()))
    keys = [key for key in mine if mine[key] != held["spec"].get(key)]
    if keys:
        raise OutputError(
            f"'{out}' holds another run",
            expected="; ".join(f"{k} = {held['spec'].get(k)}" for k in keys),
            got="; ".join(f"{k} = {mine[k]}" for k in keys),
            remedy="choose another --out, or remove that directory to measure again",
        )
    return [Job.from_dict(job) for job in held["jobs"]]


def _discard_if_empty(out: Path, jobs: Sequence[Job]) -> None:
    """After a failure before the first finished unit there is nothing to continue: leave nothing behind."""
    from quantvane.store.journal import read_journal

    if any(next(read_journal(journal_path(out, job)), None) for job in jobs):
        return
    shutil.rmtree(out / "journal", ignore_errors=True)
    for name in ("plan.json", "manifest.json"):
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty: it holds a cohort, or was the user's own
        out.rmdir()


def is_complete(out: Path) -> bool:
    """Whether the tables of a run directory are all there."""
    path = out / "manifest.json"
    return path.exists() and read_json(path).get("state") == "complete"


def open_run(out: Path) -> Comparison:
    """A finished run, summarised again from its stored tables."""
    from quantvane.run.finish import summarize

    return Comparison(out, summarize(out))


def default_out(reference: ModelSpec, identity: Any) -> Path:
    """``quantvane-runs/NAME-HASH`` in the working directory: the same command finds the same place."""
    return Path("quantvane-runs") / f"{reference.stem}-{canonical_hash(identity)[:10]}"


def compare(
    ref: str,
    candidates: Sequence[str] = (),
    *,
    text: Sequence[str] | str = (),
    context: int | None = None,
    chunks: int | None = None,
    out: str | Path | None = None,
    quantize: Sequence[str] = (),
    imatrix: str | None = None,
    settings: dict[str, str] | None = None,
    on_event: OnEvent = lambda event: None,
    **options: Any,
) -> Comparison:
    """Measure how far candidates lie from a reference.

    Args:
        ref, candidates: model specs, ``PATH_OR_URL[@ENGINE][?setting=value&…]``.
        text: one path or several; several are several corpora, kept apart and pooled. None where the reference is
            a trace or llama.cpp's base file, which hold their windows.
        context: window length in tokens; 512, or what the reference was recorded with.
        chunks: most windows from each corpus.
        out: run directory; by default one under ``quantvane-runs`` named by what is asked.
        quantize: types to make of the reference first, kept in ``OUT/cohort``.
        imatrix: importance matrix for ``quantize``.
        settings: engine settings for every model that does not set them itself.
        options: further fields of `quantvane.run.plan.CompareSpec` (protocol, stride, template, backend, top_k,
            floor_windows, seed, resamples, peer_statistics).

    Returns:
        a `Comparison`: ``.summary``, ``.to_arrow()``, ``.to_pandas()``, ``.to_json()``.

    Raises:
        QuantvaneError: see `quantvane.errors`.
    """
    texts = (text,) if isinstance(text, str) else tuple(text)
    reference = ModelSpec.parse(str(ref))
    recorded = engine_name(reference) in RECORDED
    if not recorded:
        reference = reference.with_defaults(settings or {})
    given = [ModelSpec.parse(str(c)).with_defaults(settings or {}) for c in candidates]
    where = Path(out) if out is not None else default_out(
        reference, [reference.text, [c.text for c in given], list(quantize), imatrix, texts, context, chunks,
                    {k: v for k, v in options.items() if v is not None}]
    )  # fmt: skip
    if quantize:
        if engine_name(reference) != "llamacpp":
            raise SpecError(
                "only a GGUF reference can be quantized here",
                expected="a GGUF file as REF with --quantize",
                got=reference.text,
                remedy="convert the model to GGUF first, or name its quants as candidates",
            )
        cohort = make_cohort(reference.path, quantize, where / "cohort", imatrix, on_event)
        given += [ModelSpec(record["path"]).with_defaults(dict(reference.settings)) for record in cohort]
    asked = {"context": context, "chunks": chunks, **options}
    if recorded:
        from quantvane.run.recorded import PROTOCOL_OPTIONS, adopt

        name = engine_name(reference)
        reference, adopted = adopt(name, reference, given, texts, asked)
        asked = {**{k: v for k, v in asked.items() if k not in PROTOCOL_OPTIONS}, **adopted}
    asked = {"context": 512, **{k: v for k, v in asked.items() if v is not None}}
    spec = CompareSpec(
        reference=reference,
        candidates=tuple(given),
        names=candidate_names(reference, given),
        texts=texts,
        **{"stride": asked["context"] // 2, **asked},
    )
    return run_compare(spec, where, on_event)
