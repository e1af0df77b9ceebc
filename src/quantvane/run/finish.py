"""From journals to tables, from tables to the summary and the report. No model is needed here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.displacement.aggregate import aggregate
from quantvane.displacement.ranking import compare_candidates
from quantvane.errors import OutputError, ProtocolMismatchError
from quantvane.report import build_report
from quantvane.run.measure import journal_path
from quantvane.run.plan import CompareSpec, Job
from quantvane.spec import slug
from quantvane.store.atomic import read_json, write_bytes, write_json
from quantvane.store.journal import read_journal
from quantvane.store.tokens import columns_of, write_tokens
from quantvane.types import TOKEN_FIELDS

__all__ = ["finish", "summarize", "token_path", "write_report"]

_FLOOR = "noise-floor"


def token_path(out: Path, name: str) -> Path:
    """A candidate's token table."""
    return out / "tokens" / f"{slug(name)}.parquet"


def _batches(out: Path, jobs: Sequence[Job], position: int, models: int) -> Iterator[Any]:
    """One model's record batches, in window order, out of the journals of its shards."""
    for job in sorted(jobs, key=lambda job: job.shard):
        for frame in read_journal(journal_path(out, job)):
            yield from frame[position::models]


def _merge(out: Path, spec: CompareSpec, jobs: Sequence[Job]) -> None:
    groups: dict[tuple[int, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.candidates, []).append(job)
    for candidates, shards in groups.items():
        names = [spec.names[i] for i in candidates] or [_FLOOR]
        for position, name in enumerate(names):
            write_tokens(token_path(out, name), _batches(out, shards, position, len(names)))


def finish(out: Path, spec: CompareSpec, jobs: Sequence[Job]) -> dict[str, Any]:
    """Merge the journals into token tables, write the summary and the report, and mark the run complete."""
    manifest = read_json(out / "manifest.json")
    if manifest["state"] == "measuring":
        _merge(out, spec, jobs)
        manifest["state"] = "complete"
        write_json(out / "manifest.json", manifest)
        shutil.rmtree(out / "journal", ignore_errors=True)
    summary = summarize(out)
    write_report(out, summary)
    return summary


def write_report(out: Path, summary: dict[str, Any]) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the charts; returns their paths."""
    paths = []
    for name, data in build_report(summary).items():
        write_bytes(out / name, data)
        paths.append(out / name)
    return paths


def _clusters(columns: dict[str, Any], documents: int) -> tuple[Any, str]:
    """Cluster number of every row: its document where there are several, else its window."""
    if documents > 1:
        key = columns["corpus"].astype(np.int64) << 32 | columns["document"].astype(np.int64)
        return np.unique(key, return_inverse=True)[1], "document"
    return np.unique(columns["window"], return_inverse=True)[1], "window"


_COLUMNS = ("corpus", "document", "window", "position", "category", *TOKEN_FIELDS)


def _aggregates(
    columns: dict[str, Any], clusters: Any, manifest: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Pooled aggregates of one candidate, and those of each corpus and category."""

    def part(rows: Any) -> dict[str, Any]:
        chosen = {name: values[rows] for name, values in columns.items()}
        _, own = np.unique(clusters[rows], return_inverse=True)
        result: dict[str, Any] = aggregate(chosen, own, **options).to_dict()
        return result

    out = part(slice(None))
    corpora = manifest["corpora"]
    if len(corpora) > 1:
        out["corpora"] = {c["name"]: part(columns["corpus"] == i) for i, c in enumerate(corpora)}
    categories = sorted(set(columns["category"]) - {""})
    if categories:
        out["categories"] = {name: part(columns["category"] == name) for name in categories}
    return out


def _recorded_floor(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The floor of a ``noise`` run, if it was this reference's."""
    held = read_json(path / "noise.json" if path.is_dir() else path)
    floor, measured = held.get("floor", {}), held.get("reference", {}).get("fingerprint")
    if measured != manifest["reference"]["fingerprint"]:
        raise ProtocolMismatchError(
            f"the noise floor in '{path}' is not this reference's",
            expected=f"fingerprint {manifest['reference']['fingerprint'][:16]}",
            got=f"fingerprint {str(measured)[:16]}",
            remedy="measure it with: quantvane noise REF --text FILE",
        )
    return {"kld_mean": floor["kld_mean"], "how": f"{floor['how']}; from {path}"}


def _floor(out: Path, manifest: dict[str, Any], spec: CompareSpec) -> dict[str, Any]:
    if spec.noise is not None:
        return _recorded_floor(Path(spec.noise), manifest)
    path = token_path(out, _FLOOR)
    if not path.exists():
        return {"kld_mean": None, "reason": "not measured (--floor-windows 0)"}
    columns = columns_of(path, ["window", "kld", "same_top1"])
    record = next(iter(manifest["floor"].values()))
    changed = {
        key: value
        for key, value in record["settings"].items()
        if manifest["reference"]["settings"].get(key) != value
    }
    return {
        "kld_mean": float(columns["kld"].mean()),
        "kld_max": float(columns["kld"].max()),
        "top1_agreement": float(columns["same_top1"].mean()),
        "how": "the reference against itself with "
        + ", ".join(f"{k}={v} instead of {manifest['reference']['settings'].get(k)}" for k, v in changed.items())
        + f" on the first {len(np.unique(columns['window']))} windows",
    }


def summarize(out: Path) -> dict[str, Any]:
    """The JSON document of ``compare``, from the stored tables alone; written to ``summary.json``.

    Raises:
        OutputError: no complete run there.
    """
    manifest = read_json(out / "manifest.json")
    if manifest["state"] != "complete":
        raise OutputError(
            f"the run in '{out}' is not finished",
            expected="a complete run",
            got=f"state '{manifest['state']}'",
            remedy="run the same compare command again; it continues",
        )
    spec = CompareSpec.from_dict(manifest["spec"])
    options = {"seed": spec.seed, "resamples": spec.resamples}
    documents = sum(c["documents"] for c in manifest["corpora"])
    floor = _floor(out, manifest, spec)
    candidates: list[dict[str, Any]] = []
    klds: dict[str, Any] = {}
    reference_ppl: dict[str, Any] = {}
    unit, clusters = "window", np.empty(0, np.int64)
    for name in spec.names:
        columns = columns_of(token_path(out, name), _COLUMNS)
        clusters, unit = _clusters(columns, documents)
        measured = _aggregates(columns, clusters, manifest, options)
        reference_ppl = measured.pop("ppl_ref")
        candidates.append({**_identity(manifest["candidates"][name]), **measured})
        klds[name] = columns["kld"]
    ranks = compare_candidates(klds, clusters, floor["kld_mean"], **options)
    by_name = {rank.name: rank for rank in ranks}
    for entry in candidates:
        entry.update(by_name[entry["name"]].to_dict())
    summary = {
        "schema": 1,
        "protocol": manifest["protocol"],
        "corpora": manifest["corpora"],
        "resampled_by": unit,
        "reference": {**_identity(manifest["reference"]), "ppl": reference_ppl},
        "noise_floor": floor,
        "candidates": candidates,
        "engine": {"build": manifest["reference"]["build"], "device": manifest["reference"]["device"]},
        "backend": spec.backend,
        "versions": manifest["versions"],
        "hardware": manifest["hardware"],
    }
    write_json(out / "summary.json", summary)
    return dict(read_json(out / "summary.json"))


_IDENTITY = (
    "name", "spec", "engine", "build", "settings", "fingerprint", "file_bytes", "parameters", "bits_per_weight",
    "tensor_types",
)  # fmt: skip


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in _IDENTITY}
