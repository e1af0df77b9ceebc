"""From journals to tables, from tables to the summary. No model is needed here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.displacement.aggregate import aggregate
from quantvane.displacement.ranking import compare_candidates
from quantvane.errors import OutputError, ProtocolMismatchError
from quantvane.run.peer_taps import peer_record, write_peer_tables
from quantvane.run.plan import CompareSpec, Job, journal_path
from quantvane.spec import slug
from quantvane.store.atomic import read_json, write_json
from quantvane.store.journal import read_journal
from quantvane.store.tokens import TokenColumns, write_tokens

__all__ = ["FLOOR", "Finisher", "floor_of", "merge", "summarize", "token_path"]

FLOOR = "noise-floor"


def token_path(out: Path, name: str) -> Path:
    """A candidate's token table."""
    return out / "tokens" / f"{slug(name)}.parquet"


def _batches(out: Path, jobs: Sequence[Job], position: int, models: int) -> Iterator[Any]:
    """One model's record batches, in window order, out of the journals of its shards."""
    for job in sorted(jobs, key=lambda job: job.shard):
        for frame in read_journal(journal_path(out, job)):
            yield from frame[position::models]


def merge(out: Path, spec: CompareSpec, jobs: Sequence[Job]) -> None:
    """Token tables of every model that these jobs measured; ``jobs`` holds all shards of a group."""
    groups: dict[tuple[int, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.candidates, []).append(job)
    for candidates, shards in groups.items():
        names = [spec.names[i] for i in candidates] or [FLOOR]
        for position, name in enumerate(names):
            write_tokens(token_path(out, name), _batches(out, shards, position, len(names)))
        if spec.peer_statistics and candidates:
            write_peer_tables(out, names, [journal_path(out, job) for job in sorted(shards, key=lambda j: j.shard)])


class Finisher:
    """Makes tables and aggregates of a group of candidates as soon as it is measured.

    The worker goes on measuring meanwhile; what was made early is only a cache, and `finish` makes the rest. The
    tables' bytes depend on the journals alone, so making them twice (after an interruption) changes nothing.
    """

    def __init__(self, out: Path, spec: CompareSpec, jobs: Sequence[Job]) -> None:
        self._out, self._spec, self._jobs = out, spec, jobs
        self._measured: set[str] = set()
        self._early: dict[tuple[int, ...], Future[dict[str, dict[str, Any]]]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="quantvane-finish")

    def measured(self, journal: str) -> None:
        """Take note that the job with this journal is done."""
        self._measured.add(journal)
        for job in self._jobs:
            shards = self._shards(job.candidates)
            ready = all(journal_path(self._out, j).name in self._measured for j in shards)
            if job.candidates and ready and job.candidates not in self._early:
                self._early[job.candidates] = self._pool.submit(self._make, shards)

    def _shards(self, candidates: tuple[int, ...]) -> list[Job]:
        return [job for job in self._jobs if job.candidates == candidates]

    def _make(self, shards: Sequence[Job]) -> dict[str, dict[str, Any]]:
        merge(self._out, self._spec, shards)
        manifest = read_json(self._out / "manifest.json")
        names = [self._spec.names[i] for i in shards[0].candidates]
        return {name: _aggregates(self._out, name, manifest, self._spec) for name in names}

    def finish(self) -> dict[str, Any]:
        """Merge the journals into token tables, mark the run complete, and write the summary."""
        manifest = read_json(self._out / "manifest.json")
        made: dict[str, dict[str, Any]] = {}
        if manifest["state"] == "measuring":
            for future in self._early.values():
                made.update(future.result())
            merge(self._out, self._spec, [job for job in self._jobs if job.candidates not in self._early])
            manifest["state"] = "complete"
            write_json(self._out / "manifest.json", manifest)
            shutil.rmtree(self._out / "journal", ignore_errors=True)
        self.close()
        return summarize(self._out, made)

    def close(self) -> None:
        """Wait for what runs and start nothing more."""
        self._pool.shutdown(cancel_futures=True)


def _clusters(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Columns that name a row's cluster: its document where there are several, else its window."""
    several = sum(c["documents"] for c in manifest["corpora"]) > 1
    return ("corpus", "document") if several else ("window",)


def _aggregates(out: Path, name: str, manifest: dict[str, Any], spec: CompareSpec) -> dict[str, Any]:
    """Pooled aggregates of one candidate, and those of each corpus and category."""
    columns = TokenColumns(token_path(out, name))
    clusters = _clusters(manifest)

    def of(some: TokenColumns) -> dict[str, Any]:
        return aggregate(some, clusters, seed=spec.seed, resamples=spec.resamples).to_dict()

    made = of(columns)
    corpora = manifest["corpora"]
    if len(corpora) > 1:
        made["corpora"] = {c["name"]: of(columns.only("corpus", i)) for i, c in enumerate(corpora)}
    labels = columns.categories()
    if set(labels) - {""}:
        made["categories"] = {label: of(columns.only("category", label)) for label in labels if label}
    return made


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


def floor_of(out: Path, manifest: dict[str, Any], noise: str | None = None) -> dict[str, Any]:
    """The noise floor: that of a ``noise`` run, the one recorded with the reference, or this run's own table's."""
    if noise is not None:
        return _recorded_floor(Path(noise), manifest)
    if manifest.get("noise_floor") is not None:
        return dict(manifest["noise_floor"])
    path = token_path(out, FLOOR)
    if not path.exists():
        return {"kld_mean": None, "reason": "not measured (--floor-windows 0)"}
    columns = TokenColumns(path)
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


def summarize(out: Path, made: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The JSON document of ``compare``, from the stored tables alone; written to ``summary.json``.

    Args:
        made: aggregates that are there already, by candidate; the others are made from its table.

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
    floor = floor_of(out, manifest, spec.noise)
    candidates: list[dict[str, Any]] = []
    reference_ppl: dict[str, Any] = {}
    for name in spec.names:
        measured = dict((made or {}).get(name) or _aggregates(out, name, manifest, spec))
        reference_ppl = measured.pop("ppl_ref")
        candidates.append({**_identity(manifest["candidates"][name]), **measured})
        if spec.peer_statistics:
            candidates[-1]["peer"] = peer_record(out, name)
    clusters = _clusters(manifest)
    klds = {name: TokenColumns(token_path(out, name)) for name in spec.names}
    ranks = compare_candidates(klds, clusters, floor["kld_mean"], seed=spec.seed, resamples=spec.resamples)
    by_name = {rank.name: rank for rank in ranks}
    for entry in candidates:
        entry.update(by_name[entry["name"]].to_dict())
    summary = {
        "schema": 1,
        "protocol": manifest["protocol"],
        "corpora": manifest["corpora"],
        "resampled_by": clusters[-1],
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
