"""What llama.cpp's ``--kl-divergence`` would print, computed beside our own numbers from the same forward pass.

A tap is put on a candidate's logits; the peer's values per token go to a journal of their own, one frame a unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from quantvane.displacement.peer import PeerTokenValues, clip_effect, peer_summary, peer_token_values
from quantvane.engines.base import Engine
from quantvane.engines.kld_base import KldEngine
from quantvane.run.plan import CompareSpec, Job
from quantvane.spec import slug
from quantvane.store.atomic import atomic_path
from quantvane.store.journal import Journal, read_journal
from quantvane.types import Window

__all__ = ["PeerTaps", "peer_path", "peer_record", "write_peer_tables"]

_FIELDS = tuple(f.name for f in fields(PeerTokenValues))


def _journal(place: Path) -> Path:
    return place.with_name("peer-" + place.name)


def peer_path(out: Path, name: str) -> Path:
    """A candidate's table of the peer's values per token."""
    return out / "peer" / f"{slug(name)}.parquet"


class _Tap:
    """A candidate whose logits are also read as the peer reads them; otherwise the candidate itself."""

    def __init__(self, engine: Engine, base: KldEngine) -> None:
        self._engine, self._base = engine, base
        self._parts: list[PeerTokenValues] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def logits(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        self._parts = []
        pieces = self._pieces(windows)
        rows: Any = None
        for block in self._engine.logits(windows):
            at = 0
            while at < len(block):
                if rows is None or not len(rows[3]):
                    rows = next(pieces)
                count = min(len(block) - at, len(rows[3]))
                scale, low, codes, targets = (column[:count] for column in rows)
                self._parts.append(peer_token_values((scale, low, codes), block[at : at + count], targets))
                rows = tuple(column[count:] for column in rows)
                at += count
            yield block

    def _pieces(self, windows: Sequence[Window]) -> Iterator[tuple[Any, ...]]:
        for window in windows:
            yield (*self._base.base_rows(window), window.targets[window.scored].astype(np.int32))

    def taken(self) -> PeerTokenValues:
        return PeerTokenValues.concatenate(self._parts)


class PeerTaps:
    """The taps of one job, or nothing at all where the peer's statistics were not asked for."""

    def __init__(self, place: Path, spec: CompareSpec, job: Job) -> None:
        self._journal = Journal(_journal(place)) if spec.peer_statistics and not job.is_floor else None
        self._taps: list[_Tap] = []

    def tap(self, engine: Engine, reference: Engine) -> Engine:
        """The engine to measure with in place of ``engine``."""
        if self._journal is None or not isinstance(reference, KldEngine):
            return engine
        self._taps.append(_Tap(engine, reference))
        return cast(Engine, self._taps[-1])

    def store(self, unit: int) -> None:
        """Keep the values of the unit just measured. Kept twice after an interruption, they are the same."""
        if self._journal is None:
            return
        import pyarrow as pa

        batches = []
        for tap in self._taps:
            values = tap.taken()
            columns = {"unit": np.full(len(values), unit, np.int32), **{f: getattr(values, f) for f in _FIELDS}}
            batches.append(pa.record_batch({name: pa.array(column) for name, column in columns.items()}))
        self._journal.append(batches)

    def __enter__(self) -> PeerTaps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()


def write_peer_tables(out: Path, names: Sequence[str], journals: Sequence[Path]) -> None:
    """Merge the journals of a group's shards into one Parquet file a candidate."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts: dict[str, list[Any]] = {name: [] for name in names}
    for place in journals:
        units = {frame[0]["unit"][0].as_py(): frame for frame in read_journal(_journal(place))}
        for number in sorted(units):
            for name, batch in zip(names, units[number], strict=True):
                parts[name].append(batch.drop_columns("unit"))
    for name, batches in parts.items():
        with atomic_path(peer_path(out, name)) as temporary:
            pq.write_table(pa.Table.from_batches(batches), temporary, compression="zstd")


def peer_record(out: Path, name: str) -> dict[str, Any]:
    """``candidates[i].peer`` of the JSON document: the peer's printout, and what its 16-nat clip did."""
    import pyarrow.parquet as pq

    table = pq.read_table(peer_path(out, name))
    values = PeerTokenValues(*(table[f].to_numpy() for f in _FIELDS))
    summary = peer_summary(values)
    return {
        "text": summary.text(),
        "tokens": summary.tokens,
        "kld_mean": summary.kld.value,
        "ppl": summary.ppl.value,
        "ppl_base": summary.ppl_base.value,
        "clip": asdict(clip_effect(values)),
    }
