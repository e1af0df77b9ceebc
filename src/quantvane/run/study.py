"""``study``: stored runs in, results, tables and a report out. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantvane.report.study import build_study_report
from quantvane.run.study_input import export_input, read_input
from quantvane.spec import canonical_hash
from quantvane.store.atomic import atomic_path, make_directory, to_json, write_files, write_json
from quantvane.store.manifest import package_versions
from quantvane.study.analysis import Choices, analyse
from quantvane.study.document import study_document

__all__ = ["TABLES", "StudyResult", "export_study", "study"]

TABLES = ("candidates", "variants", "sweep", "decomposition", "prediction", "router", "signed")


@dataclass(frozen=True, slots=True)
class StudyResult:
    """A finished study.

    Attributes:
        out: the run directory. summary: the JSON document of ``study --json``.
    """

    out: Path
    summary: dict[str, Any]

    def to_json(self) -> str:
        """The JSON document as text."""
        return to_json(self.summary)

    def to_arrow(self, table: str = "variants") -> Any:
        """One of `TABLES` as a `pyarrow.Table`; nested results become columns such as ``full.value``."""
        import pyarrow as pa

        return pa.Table.from_pylist([_flat(row) for row in self.summary[table]])

    def to_pandas(self, table: str = "variants") -> Any:
        """`to_arrow` as a data frame (needs pandas)."""
        return self.to_arrow(table).to_pandas()


def study(
    runs: Sequence[str | Path] | str | Path, *, out: str | Path | None = None, **choices: Any
) -> StudyResult:
    """Study a cohort: what its displacement metrics predict, in full and near the baseline.

    Args:
        runs: directories of finished ``compare`` and ``bench`` runs of one cohort, or one compact export of them.
        out: directory for results; by default one under ``quantvane-runs`` named by what is asked.
        choices: fields of `quantvane.study.analysis.Choices` (zone, composite, metric, method, seed, …).

    Raises:
        QuantvaneError: see `quantvane.errors`.
    """
    places = [runs] if isinstance(runs, str | Path) else list(runs)
    declared = Choices(**{k: v for k, v in choices.items() if v is not None})
    found = read_input(places)
    document = study_document(analyse(found.cohort, declared), found.cohort)
    document |= {key: found.document.get(key) for key in ("corpora", "protocols")}
    document["versions"] = package_versions()
    identity = [[str(Path(p).resolve()) for p in places], asdict(declared)]
    where = Path(out) if out is not None else Path("quantvane-runs") / f"study-{canonical_hash(identity)[:10]}"
    _write(where, document)
    return StudyResult(where, document)


def export_study(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the compact form of some runs: all a study needs, in a few megabytes; `study` of it gives the same."""
    export_input(read_input(runs), Path(out))
    return Path(out)


def _write(out: Path, document: dict[str, Any]) -> None:
    make_directory(out)
    result = StudyResult(out, document)
    for table in TABLES:
        _write_table(out / "tables" / f"{table}.parquet", result.to_arrow(table))
    write_json(out / "summary.json", document)
    write_files(out, build_study_report(document))


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        name = prefix + key
        if isinstance(value, Mapping):
            out |= _flat(value, f"{name}.")
        elif key.startswith("ci") or key == "splits":
            low, high = value if value is not None else (None, None)
            out |= {f"{name}.low": low, f"{name}.high": high}
        else:
            out[name] = value
    return out
