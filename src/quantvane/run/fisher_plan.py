"""What a ``fisher`` run measures, as a frozen record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from quantvane.engines.registry import RECORDED, engine_name
from quantvane.run.plan import CompareSpec, check_fields
from quantvane.spec import PROTOCOLS, ModelSpec, canonical_hash

__all__ = ["FISHERS", "LABELLED", "NEEDS", "SPACES", "FisherSpec"]

SPACES = ("logit", "hidden", "head", "params")
NEEDS = {"logit": "logits", "hidden": "hidden", "head": "hidden", "params": "gradients"}
"""Space → the capability an engine needs for it."""
FISHERS = ("empirical", "sampled", "true")
LABELLED = frozenset({"head", "params"})
"""Spaces where the choice of labels matters; in the other two F is the true one by definition."""


@dataclass(frozen=True, slots=True)
class FisherSpec:
    """Everything that decides the numbers of a ``fisher`` run.

    Attributes:
        reference, candidates, names, texts, protocol, context, stride, chunks, template: as in `CompareSpec`.
        spaces: of `SPACES`. fisher: of `FISHERS`, for the spaces in `LABELLED`.
        steps: most products with F a Lanczos iteration may spend. draws: of labels, for "sampled".
        sketch: width of the CountSketch of gradients (params); None for exact inner products.
        seed: seeds start vectors, label draws, the sketch and the resampling. resamples: bootstrap resamples.
    """

    reference: ModelSpec
    candidates: tuple[ModelSpec, ...]
    names: tuple[str, ...]
    texts: tuple[str, ...]
    spaces: tuple[str, ...] = ("logit",)
    fisher: str = "empirical"
    protocol: str = "llama-perplexity"
    context: int = 512
    stride: int = 256
    chunks: int | None = None
    template: str | None = None
    steps: int = 12
    draws: int = 4
    sketch: int | None = None
    seed: int = 0
    resamples: int = 2000

    def __post_init__(self) -> None:
        unknown = [space for space in self.spaces if space not in SPACES]
        checks: Sequence[tuple[bool, str, str, Any]] = (
            (bool(self.candidates), "there is nothing to compare", "at least one candidate", 0),
            (
                bool(self.texts) or self.reference.engine in RECORDED,
                "there is no text to measure on",
                "at least one --text FILE",
                0,
            ),
            (
                bool(self.spaces) and not unknown,
                "unknown space",
                "one or more of " + ", ".join(SPACES),
                ", ".join(unknown) or "none",
            ),
            (len(set(self.spaces)) == len(self.spaces), "a space is named twice", "each once", self.spaces),
            (self.fisher in FISHERS, "unknown Fisher matrix", "one of " + ", ".join(FISHERS), self.fisher),
            (self.protocol in PROTOCOLS, "unknown protocol", "one of " + ", ".join(PROTOCOLS), self.protocol),
            (8 <= self.context <= 1 << 20, "context out of range", "8 to 1048576 tokens", self.context),
            (
                0 < self.stride <= self.context // 2,
                "stride out of range",
                f"1 to {self.context // 2}: half a window of context at least",
                self.stride,
            ),
            (self.chunks is None or self.chunks > 0, "chunks out of range", "1 or more", self.chunks),
            (1 <= self.steps <= 1000, "steps out of range", "1 to 1000", self.steps),
            (1 <= self.draws <= 1000, "draws out of range", "1 to 1000", self.draws),
            (self.sketch is None or self.sketch >= 16, "sketch too narrow", "16 or more", self.sketch),
            (self.resamples >= 100, "too few resamples", "100 or more", self.resamples),
        )
        check_fields(checks, "fisher")

    @property
    def models(self) -> tuple[tuple[str, ModelSpec], ...]:
        """(name, spec) of the reference and the candidates; the reference's name is ""."""
        return (("", self.reference), *zip(self.names, self.candidates, strict=True))

    def fisher_of(self, space: str) -> str:
        """Which F a space's numbers are of."""
        return self.fisher if space in LABELLED else "true"

    def as_compare(self) -> CompareSpec:
        """The comparison over the same windows, for preparing them."""
        shared = ("reference", "candidates", "names", "texts", "protocol", "context", "stride", "chunks", "template")
        return CompareSpec(**{name: getattr(self, name) for name in shared})

    def with_derivatives(self) -> FisherSpec:
        """With attention spelled out where forward-mode derivatives are needed, which fused attention has not."""
        if "params" not in self.spaces or self.fisher != "true":
            return self

        def spelled(spec: ModelSpec) -> ModelSpec:
            return spec.with_defaults({"attn": "eager"}) if engine_name(spec) == "hf" else spec

        return replace(
            self, reference=spelled(self.reference), candidates=tuple(spelled(c) for c in self.candidates)
        )

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["reference"] = self.reference.text
        data["candidates"] = [c.text for c in self.candidates]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FisherSpec:
        values = dict(data)
        values["reference"] = ModelSpec.parse(data["reference"])
        values["candidates"] = tuple(ModelSpec.parse(c) for c in data["candidates"])
        for key in ("names", "texts", "spaces"):
            values[key] = tuple(data[key])
        return cls(**values)

    @property
    def hash(self) -> str:
        return canonical_hash(self.to_dict())
