"""The report as one self-contained HTML page: no script, no address to fetch, charts inline. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from .grid import Grid, Notes, bucket_grid, main_grid, model_grid, other_grid, part_grids, share_grid
from .readings import Summary, clean
from .render import themed
from .words import GLOSSARY, floor_words, headline, pairs, protocol_line

__all__ = ["CAPTIONS", "page", "template_text"]

CAPTIONS: dict[str, str] = {
    "headline": "Three readings of the same tokens. The average says how far predictions move in general; "
    "the mean of "
    "the top 5% and the maximum say how bad it gets where it is worst. Candidates stand in order of bits "
    "per weight.",
    "size": "What each saved bit costs. Points inside the shaded band are no further from the reference "
    "than the "
    "reference is from itself.",
    "tail": "Most tokens hardly move while a few move a lot. Two candidates with the same average can "
    "differ in "
    "the right half of this chart.",
    "confidence": "Displacement where the reference was sure of its next token is the kind that shows in "
    "greedy "
    "answers; displacement among unsure tokens mostly shuffles near-ties.",
    "agreement": "Both readings are coarser than the divergence: a candidate may keep the same most "
    "likely token, or "
    "the same perplexity, while its probabilities move.",
    "tensors": "The types that hold each file's parameters. A label such as Q4_K_M is a recipe, not a "
    "type: this is "
    "what the recipe gave for this model.",
}


def template_text(name: str) -> str:
    """A template of the report by its file name."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _page() -> Template:
    environment = Environment(
        loader=FunctionLoader(template_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _grids(summary: Summary, notes: Notes) -> list[Grid]:
    grids = [*part_grids(summary, notes, "corpora"), *part_grids(summary, notes, "categories")]
    optional = [
        bucket_grid(summary, notes, "by_confidence"),
        bucket_grid(summary, notes, "by_position"),
        share_grid(summary, notes),
        other_grid(summary, notes),
    ]
    return [grid for grid in [*grids, *optional] if grid is not None and grid.rows]


def page(summary: Summary, drawings: Mapping[str, tuple[str, str]]) -> str:
    """The page.

    Args:
        summary: what to report.
        drawings: chart name → (title, SVG document), in the order they are to stand.
    """
    notes = Notes()
    figures = [
        {
            "name": name,
            "caption": CAPTIONS[name],
            "svg": Markup(themed(svg, f"chart-{name}", title, CAPTIONS[name])),
        }
        for name, (title, svg) in drawings.items()
    ]
    main, rest = main_grid(summary, notes), _grids(summary, notes)
    facts = [("protocol", protocol_line(summary))]
    for words in ("engine", "versions"):
        facts.append(
            (words, ", ".join(f"{k} {v}" for k, v in pairs(summary.data.get(words))) or "not stored")
        )
    facts.append(("noise floor", floor_words(summary)))
    return _page().render(
        reference=summary.reference,
        count=len(summary.candidates),
        created=clean(summary.data.get("created") or ""),
        sentences=headline(summary),
        floor=floor_words(summary),
        main=main,
        figures=figures,
        grids=rest,
        models=model_grid(summary),
        facts=facts,
        notes=notes.reasons,
        glossary=GLOSSARY,
    )
