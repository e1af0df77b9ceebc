"""What the report says in words: the finding, ties, noise floor, protocol, glossary. Pure, plain text.

Ranks and ties were decided by the run that wrote the summary; nothing is ranked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .numbers import number, percent, value_text
from .readings import Candidate, Reading, Summary, clean

__all__ = [
    "GLOSSARY",
    "flat",
    "floor_words",
    "headline",
    "pairs",
    "protocol_line",
    "rank_text",
    "ties",
    "within_floor",
]

GLOSSARY: dict[str, str] = {
    "reference": "The high-precision model everything is compared with.",
    "candidate": "A model (or the same file under other engine settings) that may be deployed instead.",
    "KLD": "Kullback–Leibler divergence of the candidate's next-token distribution from the reference's, "
    "Σ p (ln p − ln q), in nats per token. 0 means identical predictions.",
    "top 5% mean": "Mean KLD of the 5% of tokens that moved most.",
    "percentile": "99% of the tokens have a KLD below the 99% percentile. The median is the 50% percentile.",
    "maximum": "The largest KLD of any single token seen. A sample extreme: it grows with the amount of "
    "text, "
    "so it has no interval and compares only between equal protocols.",
    "95% interval": "Written [low, high]; made by resampling documents (windows where the text is one "
    "document). "
    "It covers the choice of text, not a change of engine.",
    "noise floor": "The mean KLD of the reference against itself under a changed engine setting or a "
    "repeated run. "
    "Displacement at or below it says nothing about the quantization.",
    "tied": "The difference of two candidates lies inside the noise floor or its interval includes zero: "
    "this run "
    "cannot tell which one is closer to the reference. Ties do not chain: A tied with B and B with C "
    "leaves A and "
    "C open.",
    "bpw": "Bits per weight: bytes of the weights × 8 / number of parameters, counted from the file's "
    "tensors.",
    "PPL": "Perplexity, exp of the mean negative log-probability of the text's own tokens. It can improve "
    "by luck "
    "while predictions move away; KLD cannot.",
    "ln PPL ratio": "ln(PPL candidate / PPL reference); 0 is unchanged, above 0 is worse on this text.",
    "same top-1": "Share of tokens for which both models hold the same token most likely.",
    "Δp": "Change of the probability of the text's own token, candidate minus reference; RMS is its root "
    "mean square.",
    "reference confidence": "The probability the reference gives its most likely token.",
    "nat": "Unit of information with the natural logarithm; 1 nat = 1.443 bits.",
}

_LISTED = 10  # candidates whose means a sentence lists; more are for the table

OTHER: dict[str, str] = {
    "kld.geomean": "KLD, geometric mean",
    "kld_rev_mean": "reverse KLD, mean",
    "jsd_mean": "Jensen–Shannon divergence, mean",
    "tv_mean": "total variation, mean",
    "hellinger_mean": "Hellinger distance, mean",
    "fisher_rao_mean": "Fisher–Rao distance, mean",
    "entropy_ref_mean": "entropy of the reference, mean",
    "entropy_cand_mean": "entropy of the candidate, mean",
    "lambda_ref_mean": "λ_max of the reference's Fisher matrix, mean",
    "lambda_cand_mean": "λ_max of the candidate's Fisher matrix, mean",
    "topk_overlap_mean": "overlap of the top-k sets, mean",
    "delta_p_mean": "Δp, mean",
    "delta_p_rms": "Δp, root mean square",
}


def listing(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def rank_text(candidate: Candidate) -> str:
    """``2``, ``2, tied`` or ``not ranked``."""
    if candidate.rank is None:
        return "not ranked"
    return f"{candidate.rank}, tied" if candidate.tied_with else str(candidate.rank)


def ties(summary: Summary) -> list[str]:
    """Sentences naming who is tied, groups first: only candidates all tied with one another form a group."""
    ordered = summary.ranked
    tied = {frozenset((c.key, other)) for c in ordered for other in c.tied_with if other != c.key}
    said: set[frozenset[str]] = set()
    sentences: list[str] = []
    for start, first in enumerate(ordered):
        group = [first.key]
        for other in ordered[start + 1 :]:
            if all(frozenset((other.key, member)) in tied for member in group):
                group.append(other.key)
        new = {frozenset((a, b)) for a in group for b in group if a != b} - said
        if new:
            said |= new
            sentences.append(f"{listing(group)} are tied.")
    for candidate in ordered:
        for name in candidate.tied_with:
            pair = frozenset((candidate.key, name))
            if pair in tied - said:
                said.add(pair)
                sentences.append(f"{candidate.key} is tied with {name}.")
    return sentences


def within_floor(summary: Summary, mean: Reading) -> bool:
    """Whether a mean KLD, or its interval, reaches down to the noise floor; False where either is unknown."""
    lowest = mean.low if mean.has_interval else mean.value
    return summary.floor.known and mean.known and lowest <= summary.floor.value


def floor_words(summary: Summary) -> str:
    """The noise floor in one sentence part, its absence included."""
    floor, how = summary.floor, f" ({summary.floor_how})" if summary.floor_how else ""
    if not floor.known:
        return f"Noise floor unknown: {floor.reason}"
    if floor.value == 0:
        return f"Noise floor: exactly 0{how}"
    return f"Noise floor: mean KLD {number(floor.value)} nats{how}"


def _lead(summary: Summary) -> list[str]:
    """The ends of the ranking in words, ties at either end included."""
    known = [c for c in summary.ranked if c.rank is not None and c.get("kld.mean").known]
    if not known:
        return []
    first, last = known[0], known[-1]

    def about(candidate: Candidate) -> str:
        same = candidate.get("top1_agreement")
        share = f", same most likely token {percent(same.value)} of the time" if same.known else ""
        return f"mean KLD {value_text(candidate.get('kld.mean'))} nats per token{share}"

    if first is last:
        return [f"{first.key} against {summary.reference.key}: {about(first)}."]

    def who(candidate: Candidate) -> str:
        tied = f" (tied with {listing(candidate.tied_with)})" if candidate.tied_with else ""
        return f"{candidate.key}{tied}"

    if last.key in first.tied_with:
        return [f"{who(first)} has the lowest mean: {about(first)}."]
    return [
        f"Closest to {summary.reference.key} is {who(first)}: {about(first)}.",
        f"Furthest is {who(last)}: {about(last)}.",
    ]


def headline(summary: Summary) -> list[str]:
    """The finding in sentences: both ends, every mean in rank order, who is tied, what noise explains."""
    parts, silent = [], []
    for candidate in summary.ranked:
        mean = candidate.get("kld.mean")
        if mean.known:
            parts.append(f"{candidate.key} {value_text(mean)}")
        else:
            silent.append(f"{candidate.key}: no mean KLD ({mean.reason}).")
    sentences = _lead(summary)
    if parts and (not sentences or 1 < len(parts) <= _LISTED):
        sentences.append(f"Mean KLD with 95% intervals: {'; '.join(parts)}.")
    tied = ties(summary)
    sentences += tied
    ranked = [candidate for candidate in summary.candidates if candidate.rank is not None]
    if len(ranked) > 1 and not tied:
        sentences.append("No two candidates are tied.")
    noise = [c.key for c in summary.ranked if within_floor(summary, c.get("kld.mean"))]
    if noise:
        sentences.append(f"{listing(noise)} cannot be told from the reference's own noise.")
    return sentences + silent


def flat(value: object) -> str:
    """A stored value on one line: mappings and lists as JSON, the rest as text."""
    if isinstance(value, Mapping | list | tuple):
        return clean(json.dumps(value, ensure_ascii=False, default=str))
    return "—" if value is None else clean(value)


def pairs(data: object) -> list[tuple[str, str]]:
    """A mapping of the summary as (name, text) in stored order; empty for anything else."""
    items: Any = data.items() if isinstance(data, Mapping) else ()
    return [(clean(key), flat(value)) for key, value in items]


def protocol_line(summary: Summary) -> str:
    """The protocol on one line, hash first."""
    found = pairs(summary.data.get("protocol"))
    found.sort(key=lambda item: item[0] != "hash")
    texts = [f"{name} {value}" for name, value in found]
    for corpus in summary.data.get("corpora") or ():
        if isinstance(corpus, Mapping):
            texts.append(
                f"corpus {flat(corpus.get('name'))}: {flat(corpus.get('tokens'))} scored tokens, "
                f"{flat(corpus.get('windows'))} windows"
            )
    return "; ".join(texts) or "not stored"
