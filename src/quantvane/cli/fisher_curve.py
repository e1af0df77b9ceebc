"""``quantvane fisher --curve`` and ``--predict``: what they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from quantvane.cli.output import print_json
from quantvane.errors import SpecError
from quantvane.spec import ModelSpec

__all__ = ["print_curve", "run_curve"]


def run_curve(
    reference: str, candidates: Sequence[str], texts: Sequence[str], spaces: Sequence[str], options: dict[str, Any]
) -> dict[str, Any]:
    """The document of the curve; also written to ``curve.json`` in the directory given as ``out``.

    Raises:
        SpecError: not exactly one text, or no candidate.
    """
    from quantvane.run.fisher_curve import TOKEN_SPACE, CurveOptions, curve_document
    from quantvane.store.atomic import make_directory, write_json

    if len(texts) != 1 or not candidates:
        raise SpecError(
            "a curve needs one text and at least one candidate",
            expected="CAND… and one --text FILE",
            got=f"{len(candidates)} candidates, {len(texts)} texts",
            remedy="see quantvane fisher --help",
        )
    named = tuple(TOKEN_SPACE if space == "params" else space for space in spaces)
    settings = CurveOptions(
        spaces=named,
        points=9 if options["curve"] else 3,
        context=options["context"] or 128,
        windows=options["chunks"] or 8,
        scored=min(32, max(1, (options["context"] or 128) // 2 - 1)),
        seed=options["seed"],
    )
    out = options["out"]
    place = None if out is None else make_directory(Path(out))
    document = curve_document(reference, candidates, texts[0], settings, predict=options["predict"])
    if place is not None:
        write_json(place / "curve.json", document)
    return document


def print_curve(document: dict[str, Any], as_json: bool) -> None:
    """σ and terms per candidate and space, the verdicts in words, the predictions beside what was measured."""
    if as_json:
        print_json(document)
        return
    import statistics

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    headings = ("candidate", "space", "median σ", "windows σ < 1", "median λ'/λ", "median ½λ''/λ", "median λ_min(E)/λ")
    table = Table(title=f"Along the line to each candidate, {document['options']['windows']} windows")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("candidate", "space") else "right")
    lines = []
    for entry in document["candidates"]:
        spec = entry["candidate"]
        short = spec if spec.startswith("rtn:") else ModelSpec.parse(spec).stem
        for space in document["options"]["spaces"]:
            rows = [w[space] for w in entry["windows"] if w[space]["value"]]
            sigma = [r["moved"] / r["value"] for r in rows]
            below = f"{sum(s < 1 for s in sigma)} of {len(sigma)}"
            scaled = [
                f"{statistics.median(factor * r[field] / r['value'] for r in rows):+.3g}"
                for field, factor in (("slope", 1.0), ("curvature", 0.5), ("weyl", 1.0))
            ]
            name = escape(short)
            table.add_row(name, space, f"{statistics.median(sigma):.3f}", below, *scaled)
            lines.append(f"{short}: {entry['verdicts'][space]['theorem']['sentence']}")
            for how, found in entry.get("prediction", {}).get(space, {}).items():
                lines.append(
                    f"  predicted from {how}: mean σ {found['predicted']:.3f}, measured {found['measured']:.3f}, "
                    f"{found['coverage']['value']:.0%} of the windows inside the 95% interval"
                )
    Console().print(table)
    for line in lines:
        click.echo(line)
