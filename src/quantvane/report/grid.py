"""Tables of the page and of the model card as cells, with numbered notes for what is missing. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .numbers import DASH, file_size, interval, percent
from .readings import Candidate, Reading, Summary, clean, read
from .tables import BREAKDOWNS, Row, bucket_rows, tensor_rows
from .words import OTHER, pairs, rank_text

__all__ = [
    "Cell",
    "Grid",
    "Notes",
    "bucket_grid",
    "main_grid",
    "model_grid",
    "other_grid",
    "part_grids",
    "share_grid",
]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, the interval below it, the number of its note (0: none) and the note itself."""

    text: str
    interval: str = ""
    note: int = 0
    reason: str = ""


@dataclass(slots=True)
class Notes:
    """Reasons of missing values, numbered in order of appearance; equal reasons share a number."""

    reasons: list[str] = field(default_factory=list)

    def cell(
        self, reading: Reading, digits: int = 3, scale: float = 1.0, needs_interval: bool = True
    ) -> Cell:
        """The cell of a reading; a missing value or interval points to its reason."""
        text, ends = interval(reading, digits, scale)
        unit = "%" if scale == 100 and reading.known else ""
        missing = not reading.known or (needs_interval and not ends)
        reason = reading.reason if missing else ""
        if reason and reason not in self.reasons:
            self.reasons.append(reason)
        return Cell(text + unit, ends, self.reasons.index(reason) + 1 if reason else 0, reason)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: caption, column headings with their explanation, rows that begin with their heading.

    ``corner`` heads the first column; ``by_model`` says that the columns are candidates.
    """

    caption: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    corner: str = "model"
    by_model: bool = False


_Column = tuple[str, str, Callable[[Candidate, Notes], Cell]]


def _reading(
    path: str, digits: int = 3, scale: float = 1.0, ci: bool = True
) -> Callable[[Candidate, Notes], Cell]:
    return lambda candidate, notes: notes.cell(candidate.get(path), digits, scale, ci)


def _bits(candidate: Candidate) -> str:
    return DASH if math.isnan(candidate.bits) else f"{candidate.bits:.2f}"


_COLUMNS: tuple[_Column, ...] = (
    ("rank", "by mean", lambda candidate, notes: Cell(rank_text(candidate))),
    ("bpw", "", lambda candidate, notes: Cell(_bits(candidate))),
    ("mean KLD", "nats per token", _reading("kld.mean")),
    ("top 5% mean", "nats", _reading("kld.top5_mean")),
    ("max", "nats, one token", _reading("kld.max", ci=False)),
    ("median", "nats", _reading("kld.median")),
    ("99%", "nats", _reading("kld.p99")),
    ("same top-1", "share of tokens", _reading("top1_agreement", scale=100)),
    ("PPL", "", _reading("ppl")),
    ("ln PPL ratio", "0: unchanged", _reading("ln_ppl_ratio")),
    ("size", "", lambda candidate, notes: Cell(file_size(candidate.file_bytes))),
)


def main_grid(summary: Summary, notes: Notes) -> Grid:
    """The main table, in rank order; the reference last, with what is known of it alone."""
    rows = [(c.key, tuple(build(c, notes) for _, _, build in _COLUMNS)) for c in summary.ranked]
    reference = summary.reference
    own = {
        "rank": Cell("reference"),
        "bpw": Cell(_bits(reference)),
        "PPL": notes.cell(reference.get("ppl")),
        "size": Cell(file_size(reference.file_bytes)),
    }
    rows.append((reference.key, tuple(own.get(name, Cell("")) for name, _, _ in _COLUMNS)))
    heads = tuple((name, about) for name, about, _ in _COLUMNS)
    return Grid(f"Displacement from {reference.key}, closest first", heads, tuple(rows))


def other_grid(summary: Summary, notes: Notes) -> Grid:
    """Every other stored aggregate, one row a measure; measures nobody stored are left out."""
    stored = [path for path in OTHER if any(_stored(c, path) for c in summary.candidates)]
    rows = [(OTHER[path], tuple(notes.cell(c.get(path)) for c in summary.ranked)) for path in stored]
    heads = tuple((c.key, "") for c in summary.ranked)
    return Grid("Other distances and averages", heads, tuple(rows), "measure", True)


def _stored(candidate: Candidate, path: str) -> bool:
    reading = candidate.get(path)
    return reading.known or not reading.reason.startswith("not stored")


def share_grid(summary: Summary, notes: Notes) -> Grid | None:
    """Share of tokens with a KLD above each threshold."""
    found: dict[float, dict[str, Cell]] = {}
    for candidate in summary.ranked:
        items = candidate.data.get("share_above")
        for item in items if isinstance(items, Sequence) and not isinstance(items, str) else ():
            if isinstance(item, Mapping) and read(item.get("threshold")).known:
                cell = notes.cell(read(item.get("share")), scale=100)
                found.setdefault(read(item["threshold"]).value, {})[candidate.key] = cell
    rows = [
        (f"above {level:g} nats", tuple(cells.get(c.key, Cell(DASH)) for c in summary.ranked))
        for level, cells in sorted(found.items())
    ]
    heads = tuple((c.key, "") for c in summary.ranked)
    caption = "Share of tokens whose KLD exceeds a threshold"
    return Grid(caption, heads, tuple(rows), "threshold", True) if rows else None


def bucket_grid(summary: Summary, notes: Notes, kind: str) -> Grid | None:
    """Mean KLD by ``by_confidence`` or ``by_position`` bucket, one row a bucket."""
    rows = bucket_rows(summary, kind)
    if not rows:
        return None
    buckets: dict[str, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda r: r["order"]):
        buckets.setdefault(row["bucket"], {})[row["name"]] = row
    built = []
    for bucket, cells in buckets.items():
        tokens = next((r["tokens"] for r in cells.values() if r["tokens"] is not None), None)
        line = [Cell(DASH if tokens is None else clean(tokens))]
        line += [_row_cell(cells.get(c.key), notes) for c in summary.ranked]
        built.append((bucket, tuple(line)))
    heads = (("tokens", ""), *((c.key, "") for c in summary.ranked))
    return Grid(f"Mean KLD (nats) by {BREAKDOWNS[kind]}", heads, tuple(built), "bucket", True)


def _row_cell(row: Row | None, notes: Notes) -> Cell:
    if row is None:
        return Cell(DASH)
    nan = math.nan
    ends = (nan if row[end] is None else row[end] for end in ("value", "low", "high"))
    value, low, high = ends
    if math.isnan(value) and row["note"].startswith("∞"):
        value = math.inf
    return notes.cell(Reading(value, low, high, row["note"].partition(": ")[2]))


_PART = ("kld.mean", "kld.p99", "kld.top5_mean", "kld.max", "top1_agreement", "ln_ppl_ratio")


def part_grids(summary: Summary, notes: Notes, kind: str) -> list[Grid]:
    """One table for each corpus (``kind`` "corpora") or category ("categories"), in rank order."""
    names: dict[str, None] = {}
    for candidate in summary.candidates:
        stored = candidate.data.get(kind)
        names |= dict.fromkeys(stored if isinstance(stored, Mapping) else ())
    word = {"corpora": "Corpus", "categories": "Category"}[kind]
    grids = []
    for name in names:
        rows = []
        for candidate in summary.ranked:
            part = candidate.data.get(kind)
            inner = part.get(name) if isinstance(part, Mapping) else None
            data = inner if isinstance(inner, Mapping) else {}
            tokens = read(data.get("tokens"))
            cells = [Cell(f"{tokens.value:.0f}" if tokens.known else DASH)]
            cells += [_part_cell(data, path, notes) for path in _PART]
            rows.append((candidate.key, tuple(cells)))
        heads = (("tokens", ""), ("mean KLD", "nats"), ("99%", "KLD, nats"), ("top 5% mean", "KLD, nats"),
                 ("max", "sample extreme"), ("same top-1", ""), ("ln PPL ratio", ""))  # fmt: skip
        grids.append(Grid(f"{word}: {clean(name)}", heads, tuple(rows)))
    return grids


def _part_cell(data: Mapping[str, object], path: str, notes: Notes) -> Cell:
    part = Candidate("", "", math.nan, None, None, None, (), data)
    scale = 100.0 if path == "top1_agreement" else 1.0
    return notes.cell(part.get(path), scale=scale, needs_interval=path != "kld.max")


def model_grid(summary: Summary) -> Grid:
    """What was compared: file, size, tensor types, settings; reference first."""
    mixes: dict[str, list[str]] = {}
    for row in tensor_rows(summary):
        mixes.setdefault(row["name"], [])
        if row["type"] is not None:
            mixes[row["name"]].append(f"{row['type']} {percent(row['share'], 2)}")
    rows = []
    for (_, mix), model in zip(mixes.items(), (summary.reference, *summary.candidates), strict=True):
        settings = ", ".join(f"{name} {value}" for name, value in pairs(model.data.get("settings")))
        tokens = DASH if model.tokens is None else str(model.tokens)
        facts = (_bits(model), file_size(model.file_bytes), tokens, ", ".join(mix) or DASH, settings or DASH)
        rows.append((model.name, tuple(map(Cell, facts))))
    heads = (("bpw", ""), ("size", ""), ("tokens", "scored"), ("tensor types", "share of parameters"),
             ("settings", ""))  # fmt: skip
    return Grid("The models compared", heads, tuple(rows), "name")
