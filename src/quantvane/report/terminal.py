"""The compact table of the terminal, at most 100 columns wide; narrower ones leave columns out. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from .numbers import DASH, compact, file_size, percent
from .readings import Candidate, Reading, read_summary
from .words import floor_words, rank_text, ties

__all__ = ["table"]

# The numbers (5, 5, 7, 6, 7, 7, 7, 7, 7, 7, 5, 4 wide at most) and 12 gaps leave 14 columns for the name.
_COLUMNS = (
    "bpw",
    "size",
    "mean\nKLD",
    "±\n95%",
    "median",
    "p99",
    "top5%\nmean",
    "max",
    "PPL",
    "ln PPL\nratio",
    "same\ntop-1",
    "rank",
)


# What a terminal of fewer than 100 columns does without; the report has it all.
_WIDE_ONLY = ("size", "median", "p99", "PPL")


def _half(reading: Reading) -> str:
    return compact((reading.high - reading.low) / 2, 2) if reading.has_interval else DASH


def _signed(reading: Reading) -> str:
    text = compact(reading.value, 2)
    return f"+{text}" if reading.known and reading.value > 0 else text


def _cells(candidate: Candidate) -> list[str]:
    mean = candidate.get("kld.mean")
    values = [compact(candidate.get(f"kld.{name}").value) for name in ("median", "p99", "top5_mean", "max")]
    rank = rank_text(candidate)
    return [
        DASH if math.isnan(candidate.bits) else f"{candidate.bits:.2f}",
        file_size(candidate.file_bytes).replace(" ", "").rstrip("B"),
        compact(mean.value),
        _half(mean),
        *values,
        compact(candidate.get("ppl").value),
        _signed(candidate.get("ln_ppl_ratio")),
        percent(candidate.get("top1_agreement").value).rstrip("%"),
        DASH if candidate.rank is None else rank.replace(", tied", "="),
    ]


def table(summary: Mapping[str, Any], width: int = 100) -> Table:
    """The candidates in rank order; ``=`` after a rank means tied, which the caption spells out.

    Args:
        width: columns of the terminal.

    Raises:
        DataError: the summary cannot be read.
    """
    data = read_summary(summary)
    caption = ["KLD in nats; size in bytes; top-1 in %; max is a sample extreme."]
    caption += [floor_words(data) + "."]
    caption += ties(data) and [f"= tied: {' '.join(ties(data))}"]
    reasons = [c.get("kld.mean").reason for c in data.candidates if not c.get("kld.mean").known]
    caption += [f"{DASH} {reason}" for reason in dict.fromkeys(reasons)]
    built = Table(
        title=Text(f"Displacement from {data.reference.key}"),
        caption=Text("\n".join(caption)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    built.add_column("candidate", overflow="fold", min_width=10)
    shown = [i for i, name in enumerate(_COLUMNS) if width >= 100 or name not in _WIDE_ONLY]
    for i in shown:
        built.add_column(_COLUMNS[i], justify="right", no_wrap=True)
    for candidate in data.ranked:
        cells = _cells(candidate)
        built.add_row(Text(candidate.key), *[cells[i] for i in shown])
    return built
