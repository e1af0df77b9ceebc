"""``fisher --curve`` and ``--predict``: a transformers model, its windows, and the line to quantized weights.

The candidate is ``HF_DIR@hf?weights=QUANT.gguf``, another directory of the same model, or ``rtn:BITS``, the
reference's own matrices after round-to-nearest in groups of 64. Its weights are only ever read as a direction δ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.corpora.text import WindowRule, peer_windows, read_corpus
from quantvane.engines.base import Engine, require
from quantvane.engines.registry import engine_name, open_engine
from quantvane.errors import SpecError
from quantvane.fisher.gram_terms import Terms, token_gram_terms, weyl_gram
from quantvane.fisher.line import WeightLine, inner_products
from quantvane.fisher.perturbation import OUTPUT_SPACES, output_terms, output_value, weyl_output
from quantvane.fisher.prediction import Agreement, Prediction, agreement, predict_by_draws, predict_by_terms
from quantvane.fisher.rounding import Noise, draw_noise, measure_noise, round_to_nearest
from quantvane.fisher.verdict import Departure, Verdict, WindowEvidence, verdict
from quantvane.spec import ModelSpec
from quantvane.types import FloatArray, Window

__all__ = [
    "CURVE_SPACES",
    "CurveOptions",
    "Sample",
    "candidate_weights",
    "curve_document",
    "curve_windows",
    "judge",
    "predict_windows",
    "samples_of",
    "weights_of_model",
]

TOKEN_SPACE = "params-token"
CURVE_SPACES = (*OUTPUT_SPACES, TOKEN_SPACE)
Weights = dict[str, npt.NDArray[np.float32]]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """What is computed along the line.

    Attributes:
        spaces: of `CURVE_SPACES`. points: values of t between −1 and 1, an odd number so that 0 is among them.
        context: tokens of a window. windows: number of windows. scored: positions of each that count, its last.
        tokens: positions of each whose gradients are taken (params-token), evenly spaced among the scored.
        probes: draws of the noise for a prediction. seed: of the draws.
    """

    spaces: tuple[str, ...] = CURVE_SPACES
    points: int = 9
    context: int = 128
    windows: int = 8
    scored: int = 32
    tokens: int = 4
    probes: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            (bool(self.spaces) and set(self.spaces) <= set(CURVE_SPACES), "spaces", ", ".join(CURVE_SPACES)),
            (self.points >= 3 and self.points % 2 == 1, "points", "an odd number, 3 or more"),
            (self.context >= 8 and 0 < self.scored <= self.context // 2 - 1, "scored", "1 to context/2 − 1"),
            (self.windows >= 1 and 1 <= self.tokens <= self.scored, "tokens", "1 to scored"),
            (self.probes >= 3, "probes", "3 or more"),
        )
        for right, name, expected in checks:
            if not right:
                raise SpecError(
                    f"{name} of the curve out of range",
                    expected=expected,
                    got=str(getattr(self, name)),
                    remedy="see quantvane fisher --help",
                )

    @property
    def grid(self) -> FloatArray:
        """(points,) t from −1 to 1, exactly 0 in the middle."""
        half = np.linspace(0.0, 1.0, self.points // 2 + 1)
        return np.concatenate([-half[:0:-1], half])


@dataclass(frozen=True, slots=True)
class Sample:
    """One window as the line takes it: tokens (n,), scored positions (N,), the tokens observed there (N,)."""

    ids: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]

    @classmethod
    def of(cls, window: Window, scored: int) -> Sample:
        """The last ``scored`` of a window's scored positions."""
        rows = np.flatnonzero(window.scored)[-scored:]
        return cls(window.tokens, rows, window.targets[rows])

    def thinned(self, count: int) -> Sample:
        """``count`` of the scored positions, evenly spaced."""
        at = np.unique(np.linspace(0, len(self.rows) - 1, count).round().astype(int))
        return Sample(self.ids, self.rows[at], self.targets[at])


def samples_of(engine: Engine, text: str, options: CurveOptions) -> list[Sample]:
    """The first windows of a text under llama.cpp's protocol.

    Raises:
        CorpusError: a text that is missing or too short.
    """
    rule = WindowRule(options.context, options.context, options.windows)
    return [Sample.of(w, options.scored) for w in peer_windows(engine, read_corpus(text), rule, 0)]


def weights_of_model(engine: Engine) -> Weights:
    """Parameter name → float32 array of an engine with gradients.

    Raises:
        CapabilityError: an engine without.
    """
    require(engine, "gradients", "a perturbation curve")
    model: Any = engine.model  # type: ignore[attr-defined]
    return {name: p.detach().float().cpu().numpy() for name, p in model.named_parameters()}


def candidate_weights(candidate: str, reference: Engine) -> Weights:
    """The candidate's weights under the reference's names: see the module for what may be named.

    Raises:
        SpecError: ``rtn:`` without a number of bits, or a candidate of another engine than ``hf``.
    """
    own = weights_of_model(reference)
    if candidate.startswith("rtn:"):
        bits = candidate.removeprefix("rtn:")
        if not bits.isdigit() or not 1 <= int(bits) <= 16:
            raise SpecError(
                f"'{candidate}' names no rounding",
                expected="rtn:BITS with 1 to 16 bits",
                got=bits or "nothing",
                remedy="for example rtn:4",
            )
        return {
            name: round_to_nearest(w, int(bits)).astype(np.float32) if w.ndim == 2 else w for name, w in own.items()
        }
    spec = ModelSpec.parse(candidate)
    if engine_name(spec) != "hf":
        raise SpecError(
            f"'{candidate}' has no weights that can be moved towards",
            expected="HF_DIR@hf?weights=QUANT.gguf, a Hugging Face directory, or rtn:BITS",
            got=f"engine {engine_name(spec)}",
            remedy="name the reference's directory with the quant as ?weights=",
        )
    engine = open_engine(spec, 8)
    try:
        return weights_of_model(engine)
    finally:
        engine.close()


def direction(original: Weights, moved: Weights) -> Weights:
    """δ = moved − original, tensors that did not move left out."""
    out = {name: moved[name] - w for name, w in original.items()}
    return {name: d for name, d in out.items() if np.any(d)}


def curve_windows(line: WeightLine, samples: Sequence[Sample], options: CurveOptions) -> list[Row]:
    """Per window and space: λ(0), λ(1), terms, λ_min(E) and, with more than 3 points, the curve.

    Each entry: ``{space: {"value", "moved", "slope", "curvature", "lowest_first", "lowest_second", "weyl",
    "reason", "curve"}}``; for ``params-token`` the matrices are the positions' own gᵢgᵢᵀ and ``weyl`` is a mean over
    positions, as for ``logit`` and ``hidden``.
    """
    return [_window(line, sample, options) for sample in samples]


def _window(line: WeightLine, sample: Sample, options: CurveOptions) -> Row:
    out: Row = {}
    spaces = [s for s in options.spaces if s in OUTPUT_SPACES]
    if spaces:
        jet = line.jet(sample.ids, sample.rows)
        grid = options.grid if options.points > 3 else np.array([1.0])
        states = {float(t): line.states(sample.ids, sample.rows, float(t)) for t in grid if t != 0.0}
        for space in spaces:
            terms = output_terms(space, jet, sample.targets)
            values = {t: output_value(space, s, sample.targets) for t, s in states.items()}
            weyl = weyl_output(space, jet.at, states[1.0], sample.targets)[0]
            out[space] = _row(terms, values, weyl, options)
    if TOKEN_SPACE in options.spaces:
        out[TOKEN_SPACE] = _params(line, sample.thinned(options.tokens), options)
    return out


def _row(terms: Terms, values: Mapping[float, float], weyl: float, options: CurveOptions) -> Row:
    row = {k: v for k, v in asdict(terms).items() if k != "reason" or v}
    row |= {"moved": values[1.0], "weyl": weyl}
    if options.points > 3:
        row["curve"] = [terms.value if t == 0 else values[float(t)] for t in options.grid]
    return row


def _params(line: WeightLine, sample: Sample, options: CurveOptions) -> Row:
    args = sample.ids, sample.rows, sample.targets
    jets = line.gradient_jets(*args, line.difference_step())
    terms = token_gram_terms(inner_products(*jets), line.size)
    values, weyl = {}, math.nan
    for t in options.grid if options.points > 3 else (1.0,):
        if t == 0.0:
            continue
        moved = line.gradients(*args, float(t))
        values[float(t)] = float(moved.double().square().sum()) / len(moved)
        if t == 1.0:
            gram, n = inner_products(moved, jets[0]), len(moved)
            weyl = float(np.mean([weyl_gram(gram[np.ix_([i, n + i], [i, n + i])], line.size) for i in range(n)]))
    return _row(terms, values, weyl, options)


def judge(rows: Sequence[Row], space: str, departures: Sequence[Departure] = ()) -> Verdict:
    """The verdict on both claims from the rows of `curve_windows`."""
    fields = ("value", "moved", "slope", "curvature", "weyl", "lowest_first", "lowest_second")
    evidence = [WindowEvidence(*(float(row[space][f]) for f in fields)) for row in rows]
    return verdict(evidence, departures, space)


def predict_windows(
    model: Any, noise: Noise, samples: Sequence[Sample], options: CurveOptions, factors: Sequence[float] = (1.0,)
) -> dict[float, dict[str, dict[str, Prediction]]]:
    """Predicted σ per window from the noise's size alone: factor → space → {"terms", "draws"}.

    Args:
        model: the reference's torch module. noise: a type's rounding noise.
        factors: multiples of the noise; the same draws serve all of them (terms scale, draws are evaluated again).
    """
    rng = np.random.default_rng(options.seed)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in noise.scale}
    size = options.probes, len(samples)
    found: dict[str, dict[str, FloatArray]] = {
        s: {k: np.empty(size) for k in ("value", "slope", "curvature")}
        | {f"moved {f}": np.empty(size) for f in factors}
        for s in options.spaces
    }
    for probe in range(options.probes):
        line = WeightLine(model, draw_noise(noise, shapes, rng))
        for number, sample in enumerate(samples):
            for space, values in _probe(line, sample, options, factors).items():
                for key, value in values.items():
                    found[space][key][probe, number] = value
    out: dict[float, dict[str, dict[str, Prediction]]] = {}
    for f in factors:
        out[f] = {
            space: {
                "terms": predict_by_terms(v["value"][0], f * v["slope"], f * f * v["curvature"]),
                "draws": predict_by_draws(v["value"][0], v[f"moved {f}"]),
            }
            for space, v in found.items()
        }
    return out


def _probe(line: WeightLine, sample: Sample, options: CurveOptions, factors: Sequence[float]) -> dict[str, Row]:
    out: dict[str, Row] = {}
    spaces = [s for s in options.spaces if s in OUTPUT_SPACES]
    if spaces:
        jet = line.jet(sample.ids, sample.rows)
        states = {f: line.states(sample.ids, sample.rows, f) for f in factors}
        for space in spaces:
            terms = output_terms(space, jet, sample.targets, lowest=False)
            out[space] = {"value": terms.value, "slope": terms.slope, "curvature": terms.curvature}
            out[space] |= {f"moved {f}": output_value(space, s, sample.targets) for f, s in states.items()}
    if TOKEN_SPACE in options.spaces:
        thin = sample.thinned(options.tokens)
        args = thin.ids, thin.rows, thin.targets

        def size(t: float) -> float:
            g = line.gradients(*args, t)
            return float(g.double().square().sum()) / len(g)

        step = line.difference_step()
        down, middle, up = size(-step), size(0.0), size(step)
        out[TOKEN_SPACE] = {
            "value": middle,
            "slope": (up - down) / (2 * step),
            "curvature": (up - middle - (middle - down)) / step**2,
        } | {f"moved {f}": size(f) for f in factors}
    return out


def measured_sigma(rows: Sequence[Row], space: str) -> FloatArray:
    """(W,) σ = λ(1)/λ(0) of the rows of `curve_windows`."""
    return np.array([row[space]["moved"] / row[space]["value"] for row in rows])


def curve_document(
    reference: str, candidates: Sequence[str], text: str, options: CurveOptions, *, predict: bool = False
) -> dict[str, Any]:
    """The curves, verdicts and, on request, predictions of some candidates, as one JSON-ready document.

    Args:
        reference: spec of a transformers model. candidates: see the module. text: path of the text.

    Raises:
        CapabilityError: an engine without gradients. SpecError: a candidate that cannot be a direction.
    """
    engine = open_engine(ModelSpec.parse(reference), options.context)
    try:
        own = weights_of_model(engine)
        samples = samples_of(engine, text, options)
        model: Any = engine.model  # type: ignore[attr-defined]
        entries = []
        for name in candidates:
            moved = candidate_weights(name, engine)
            noise = measure_noise(own, moved)
            rows = curve_windows(WeightLine(model, direction(own, moved)), samples, options)
            entry: dict[str, Any] = {"candidate": name, "relative_noise": noise.relative, "windows": rows}
            entry["verdicts"] = {s: asdict(judge(rows, s)) for s in options.spaces}
            if predict:
                made = predict_windows(model, noise, samples, options)[1.0]
                entry["prediction"] = {
                    space: {how: agreement_row(agreement(p, measured_sigma(rows, space))) for how, p in ways.items()}
                    for space, ways in made.items()
                }
            entries.append(entry)
    finally:
        engine.close()
    return {
        "schema": 1,
        "reference": reference,
        "options": asdict(options),
        "t": options.grid.tolist(),
        "candidates": entries,
    }


def agreement_row(found: Agreement) -> Row:
    """An `Agreement` as JSON-ready values."""
    out = {k: v for k, v in asdict(found).items() if k not in ("rank", "coverage")}
    return out | {"rank": found.rank.to_dict(), "coverage": found.coverage.to_dict()}
