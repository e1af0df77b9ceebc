"""``fisher``: λ_max of a candidate against that of its reference, window by window, in one or more spaces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from quantvane.engines.registry import RECORDED, check_model, engine_name
from quantvane.errors import CapabilityError, OutputError, QuantvaneError
from quantvane.run.compare import default_out, is_complete
from quantvane.run.fisher_plan import FisherSpec
from quantvane.run.fisher_summary import candidate_summary, resampled_by
from quantvane.run.fisher_work import fisher_journal
from quantvane.run.local import OnEvent, run_worker
from quantvane.run.plan import candidate_names
from quantvane.run.recorded import PROTOCOL_OPTIONS, adopt
from quantvane.spec import ModelSpec, slug
from quantvane.store.atomic import make_directory, read_json, to_json, write_files, write_json
from quantvane.store.journal import read_journal
from quantvane.store.windows import join_models, model_schema, read_windows, write_windows

__all__ = ["FisherRun", "fisher", "load_fisher", "run_fisher", "window_path", "write_fisher_report"]


@dataclass(frozen=True, slots=True)
class FisherRun:
    """A finished run.

    Attributes:
        out: the run directory. summary: the JSON document of ``fisher --json``.
    """

    out: Path
    summary: dict[str, Any]

    def to_json(self) -> str:
        """The JSON document as text."""
        return to_json(self.summary)

    def to_arrow(self) -> Any:
        """All window tables in one `pyarrow.Table`, with the candidate's name as first column."""
        tables = []
        for entry in self.summary["candidates"]:
            table = read_windows(window_path(self.out, entry["name"]))
            tables.append(table.add_column(0, "candidate", pa.array([entry["name"]] * table.num_rows)))
        return pa.concat_tables(tables)

    def to_pandas(self) -> Any:
        """`to_arrow` as a pandas DataFrame; needs pandas."""
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise CapabilityError(
                "to_pandas() needs pandas", expected="pandas", got="not installed", remedy="pip install pandas"
            ) from None
        return self.to_arrow().to_pandas()


def window_path(out: Path, name: str) -> Path:
    """A candidate's window table."""
    return out / "windows" / f"{slug(name)}.parquet"


def fisher(
    ref: str,
    candidates: Sequence[str] | str,
    *,
    text: Sequence[str] | str = (),
    space: Sequence[str] | str = ("logit",),
    out: str | Path | None = None,
    settings: dict[str, str] | None = None,
    on_event: OnEvent = lambda event: None,
    **options: Any,
) -> FisherRun:
    """σ = λ_max(candidate)/λ_max(reference) per window, with its distribution, beside NLL and entropy.

    Args:
        ref, candidates: model specs. In parameter space a quant is ``HF_DIR@hf?weights=FILE.gguf``.
        text: one path or several; none where the reference is recorded.
        space: of "logit", "hidden", "head", "params".
        out: run directory; an interrupted run continues there.
        settings: engine settings for every model that does not set them itself.
        options: further fields of `quantvane.run.fisher_plan.FisherSpec` (fisher, context, chunks, steps, …).

    Raises:
        CapabilityError: an engine that cannot serve a space; it is named.
        QuantvaneError: see `quantvane.errors`.
    """
    texts = (text,) if isinstance(text, str) else tuple(text)
    reference = ModelSpec.parse(str(ref))
    listed = (candidates,) if isinstance(candidates, str) else tuple(candidates)
    given = [ModelSpec.parse(str(c)).with_defaults(settings or {}) for c in listed]
    asked = {key: value for key, value in options.items() if value is not None}
    if engine_name(reference) in RECORDED:
        wanted = {key: options.get(key) for key in PROTOCOL_OPTIONS}
        reference, adopted = adopt(engine_name(reference), reference, given, texts, wanted)
        asked |= {key: value for key, value in adopted.items() if value is not None}
    else:
        reference = reference.with_defaults(settings or {})
    context = int(asked.get("context", 512))
    spec = FisherSpec(
        reference=reference,
        candidates=tuple(given),
        names=candidate_names(reference, given),
        texts=texts,
        spaces=(space,) if isinstance(space, str) else tuple(space),
        **{"stride": context // 2, **asked},
    ).with_derivatives()
    return run_fisher(spec, Path(out) if out is not None else default_out(reference, spec.to_dict()), on_event)


def run_fisher(spec: FisherSpec, out: Path, on_event: OnEvent = lambda event: None) -> FisherRun:
    """Carry out a spec in a run directory; continues there after an interruption.

    Raises:
        QuantvaneError: what went wrong; finished windows stay for the next attempt.
    """
    from quantvane.corpora.text import read_corpus

    for _, model in spec.models:
        check_model(model)
    for text in spec.texts:
        read_corpus(text)
    make_directory(out)
    _claim(out, spec)
    if not is_complete(out):
        try:
            run_worker({"task": "fisher", "spec": spec.to_dict(), "out": str(out)}, on_event)
        except QuantvaneError:
            _discard_if_empty(out, spec)
            raise
        on_event({"event": "summarizing"})
        _merge(out, spec)
    run = load_fisher(out)
    write_fisher_report(run)
    return run


def _claim(out: Path, spec: FisherSpec) -> None:
    path = out / "plan.json"
    mine = json.loads(to_json(spec.to_dict()))
    if not path.exists():
        if (out / "manifest.json").exists() or (out / "windows").exists():
            raise OutputError(
                f"'{out}' holds files of something else",
                expected="an empty directory or a run directory of the same command",
                got="tables without this plan",
                remedy="choose another --out",
            )
        write_json(path, {"schema": 1, "command": "fisher", "spec": mine})
        return
    held = read_json(path)
    theirs = held.get("spec", {})
    keys = [key for key in mine if mine[key] != theirs.get(key)]
    if held.get("command") != "fisher" or keys:
        raise OutputError(
            f"'{out}' holds another run",
            expected="; ".join(f"{k} = {theirs.get(k)}" for k in keys) or str(held.get("command", "compare")),
            got="; ".join(f"{k} = {mine[k]}" for k in keys) or "fisher",
            remedy="choose another --out, or remove that directory to measure again",
        )


def _discard_if_empty(out: Path, spec: FisherSpec) -> None:
    """After a failure before the first finished window there is nothing to continue: leave nothing behind."""
    if any(next(read_journal(fisher_journal(out, name)), None) for name, _ in spec.models):
        return
    shutil.rmtree(out / "journal", ignore_errors=True)
    for name in ("plan.json", "manifest.json"):
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty: it was the user's own
        out.rmdir()


def _merge(out: Path, spec: FisherSpec) -> None:
    """Journals into tables."""
    schema = model_schema(spec.spaces)
    held = {}
    for name, _ in spec.models:
        batches = [batch for frame in read_journal(fisher_journal(out, name)) for batch in frame]
        held[name] = pa.Table.from_batches(batches, schema).combine_chunks()
    for name in spec.names:
        write_windows(window_path(out, name), join_models(held[""], held[name], spec.spaces))
    write_json(out / "manifest.json", read_json(out / "manifest.json") | {"state": "complete"})
    shutil.rmtree(out / "journal", ignore_errors=True)


_IDENTITY = ("name", "spec", "engine", "build", "fingerprint", "file_bytes", "bits_per_weight")


def load_fisher(out: Path) -> FisherRun:
    """A finished run, summarised again from its stored tables; written to ``summary.json``.

    Raises:
        OutputError: no finished run of this command there.
    """
    manifest = read_json(out / "manifest.json")
    if manifest.get("command") != "fisher" or manifest.get("state") != "complete":
        raise OutputError(
            f"'{out}' holds no finished run of this command",
            expected="a run directory of quantvane fisher",
            got=f"command {manifest.get('command')}, state {manifest.get('state')}",
            remedy="run quantvane fisher --out there first",
        )
    spec = FisherSpec.from_dict(manifest["spec"])
    documents = sum(corpus.get("documents", 1) for corpus in manifest["corpora"])
    entries, unit = [], "window"
    for name in spec.names:
        table = read_windows(window_path(out, name))
        unit = resampled_by(table, documents)
        identity = {key: manifest["candidates"][name][key] for key in _IDENTITY}
        entries.append({**identity, **candidate_summary(table, spec, documents)})
    summary = {
        "schema": 1,
        "command": "fisher",
        "protocol": manifest["protocol"],
        "corpora": manifest["corpora"],
        "windows": manifest["windows"],
        "resampled_by": unit,
        "spaces": {space: spec.fisher_of(space) for space in spec.spaces},
        "reference": {key: manifest["reference"][key] for key in _IDENTITY},
        "candidates": entries,
        "versions": manifest["versions"],
        "hardware": manifest["hardware"],
    }
    write_json(out / "summary.json", summary)
    return FisherRun(out, dict(read_json(out / "summary.json")))


def write_fisher_report(run: FisherRun) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the chart from the stored tables; returns their paths."""
    from quantvane.report.fisher import build_fisher_report

    sigmas = {}
    for entry in run.summary["candidates"]:
        table = read_windows(window_path(run.out, entry["name"]))
        sigmas[entry["name"]] = {s: table[f"sigma_{s}"].to_pylist() for s in run.summary["spaces"]}
    return write_files(run.out, build_fisher_report(run.summary, sigmas))
