"""Does quantization raise λ_max of the Fisher information, where, and can it be predicted? Three small models.

Run: OMP_NUM_THREADS=1 python benchmarks/fisher_study.py --models DIR --text FILE --other FILE

DIR holds ``lm10m``, ``stories260K`` and ``babyllama``, each with a GGUF in F16 and the same model as ``hf/``. Quants
that ``--quants DIR`` lacks are made there. Every finished piece is kept in ``--cache DIR``: the same command continues
after an interruption. Writes results/fisher_study.json; benchmarks/fisher_charts.py draws it.

Windows of 128 tokens, the last positions of each scored. lm10m reads ``--text``, held out from its training. The other
two learnt children's stories, of which no file is at hand: their windows are sampled from the models themselves (BOS,
temperature 1), which is their own distribution by construction.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.quantize import quantize_file
from quantvane.engines.registry import open_engine
from quantvane.fisher.lanczos import lanczos_lambda
from quantvane.fisher.line import WeightLine
from quantvane.fisher.params_operator import gauss_newton
from quantvane.fisher.perturbation import output_value
from quantvane.fisher.prediction import agreement
from quantvane.fisher.rounding import measure_noise
from quantvane.fisher.verdict import Departure, auroc
from quantvane.run.fisher_curve import (
    CurveOptions,
    Sample,
    agreement_row,
    candidate_weights,
    curve_windows,
    direction,
    judge,
    measured_sigma,
    predict_windows,
    samples_of,
    weights_of_model,
)
from quantvane.spec import ModelSpec
from quantvane.store.atomic import read_json, to_json, write_bytes, write_json
from quantvane.types import Window

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
BITS = (8, 7, 6, 5, 4, 3, 2)
CURVED = ("rtn:8", "rtn:4", "rtn:3", "rtn:2", "Q4_K_M", "Q2_K")
FILES = {
    "stories260K": "stories260K-f16.gguf",
    "babyllama": "babyllama-tok361-f16.gguf",
    "lm10m": "lm10m-f16.gguf",
}
OPTIONS = {
    "stories260K": CurveOptions(windows=12, scored=16, tokens=4, points=3, probes=6),
    "babyllama": CurveOptions(windows=12, scored=16, tokens=4, points=3, probes=6),
    "lm10m": CurveOptions(windows=6, scored=8, tokens=2, points=3, probes=3),
}
GN_CANDIDATES = ("rtn:8", "rtn:4", "rtn:3", "rtn:2", "Q4_K_M", "Q2_K")
PREDICTED = ("rtn", "Q4_K_M", "Q2_K")
TYPE_SPACES = {"lm10m": ("logit", "hidden", "head")}  # gradients of every type's draws would take long there
GN_WINDOWS = {"stories260K": 6, "babyllama": 6, "lm10m": 2}
GN_POSITIONS = 8
DEPARTED_WINDOWS = 24


def sampled(engine: Any, windows: int, context: int, seed: int) -> list[np.ndarray]:
    """Token windows the model itself writes at temperature 1, from BOS on."""
    import torch

    rng = np.random.default_rng(seed)
    ids = np.full((windows, 1), engine.vocabulary.bos, np.int64)
    with torch.no_grad():
        cache, fed = None, torch.from_numpy(ids)
        for _ in range(context - 1):
            out = engine.model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            noisy = out.logits[:, -1].double().numpy() + rng.gumbel(size=(windows, out.logits.shape[-1]))
            step = noisy.argmax(axis=1)[:, None]
            ids, fed = np.concatenate([ids, step], axis=1), torch.from_numpy(step)
    return list(ids.astype(np.int32))


def as_sample(tokens: np.ndarray, scored: int) -> Sample:
    rows = np.arange(len(tokens) - 1 - scored, len(tokens) - 1)
    return Sample(tokens, rows, tokens[rows + 1])


class Study:
    """One model's share of the study; every piece goes through the cache."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name, self.given, self.options = name, given, OPTIONS[name]
        self.folder = given.models / name
        self.engine = open_engine(ModelSpec.parse(f"{self.folder / 'hf'}@hf?n_threads=1"), 128)
        self.own = weights_of_model(self.engine)
        windows = max(self.options.windows, DEPARTED_WINDOWS)
        if name == "lm10m":
            self.samples = samples_of(self.engine, str(given.text), replace(self.options, windows=windows))
        else:
            made = sampled(self.engine, windows, self.options.context, 0)
            self.samples = [as_sample(ids, self.options.scored) for ids in made]
        self.used = self.samples[: self.options.windows]

    def piece(self, label: str, work: Callable[[], Any]) -> Any:
        """The cached result of ``work``, or its result, cached."""
        path = self.given.cache / f"{self.name}-{label.replace(':', '')}.json"
        if not path.exists():
            begun, cpu = time.perf_counter(), time.process_time()
            write_json(path, work())
            spent = f"{time.perf_counter() - begun:.0f} s, {time.process_time() - cpu:.0f} s of CPU"
            print(f"{self.name} {label}: {spent}", file=sys.stderr, flush=True)
        return read_json(path)

    def weights(self, label: str) -> dict[str, np.ndarray]:
        if label.startswith("rtn:"):
            return candidate_weights(label, self.engine)
        path = self.given.quants / f"{self.name}-{label}.gguf"
        if not path.exists():
            quantize_file(str(self.folder / FILES[self.name]), path, label)
        return candidate_weights(f"{self.folder / 'hf'}@hf?weights={path}", self.engine)

    def line(self, label: str) -> WeightLine:
        return WeightLine(self.engine.model, direction(self.own, self.weights(label)))

    def check(self) -> dict[str, float]:
        """transformers with the weights of the F16 file against llama.cpp on that file: logits of one window."""
        sample, place = self.used[0], self.folder / FILES[self.name]
        scored = np.zeros(len(sample.ids), bool)
        scored[sample.rows] = True
        window = Window(sample.ids, np.roll(sample.ids, -1), scored, 0, 0, 0)
        peer = open_engine(ModelSpec.parse(str(place)), len(sample.ids))
        theirs = np.concatenate([block.copy() for block in peer.logits([window])]).astype(np.float64)
        peer.close()
        weights = candidate_weights(f"{self.folder / 'hf'}@hf?weights={place}", self.engine)
        states = WeightLine(self.engine.model, direction(self.own, weights)).states(sample.ids, sample.rows, 1.0)
        gap = states.logits() - theirs
        return {"rms": float(np.sqrt(np.mean(gap**2))), "largest": float(np.abs(gap).max()), "sd": float(theirs.std())}

    def rows(self, label: str) -> dict[str, Any]:
        weights = self.weights(label)
        line = WeightLine(self.engine.model, direction(self.own, weights))
        noise = measure_noise(self.own, weights)
        return {"relative_noise": noise.relative, "rows": curve_windows(line, self.used, self.options)}

    def curve(self, label: str) -> list[Any]:
        options = replace(self.options, points=17, spaces=("logit", "hidden", "head"))
        return curve_windows(self.line(label), self.used[:2], options)

    def gauss_newton(self, label: str) -> list[dict[str, float]]:
        """λ of the Gauss–Newton matrix at θ and θ + δ, by Lanczos to a residual of 1%."""
        line, out = self.line(label), []
        for sample in self.used[: GN_WINDOWS[self.name]]:
            thin = sample.thinned(GN_POSITIONS)
            found = [
                lanczos_lambda(
                    gauss_newton(line.scored(thin.ids, thin.rows, thin.targets, t)),
                    line.size,
                    np.random.default_rng(0),
                    steps=16,
                    tolerance=1e-2,
                )
                for t in (0.0, 1.0)
            ]
            row = {"value": found[0].value, "moved": found[1].value}
            out.append(row | {"residual": max(f.residual / f.value for f in found)})
        return out

    def departures(self) -> dict[str, Any]:
        """λ per window of reference and departed inputs, spaces logit and hidden."""
        rng = np.random.default_rng(1)
        vocab, count = len(self.engine.vocabulary), DEPARTED_WINDOWS
        reference = self.samples[:count]

        def shuffled(ids: np.ndarray) -> np.ndarray:
            return np.concatenate([ids[:1], rng.permutation(ids[1:])]).astype(np.int32)

        scored = self.options.scored
        other = samples_of(self.engine, str(self.given.other), replace(self.options, windows=count))
        kinds = {
            "reference": reference,
            "other text": other,
            "shuffled tokens": [as_sample(shuffled(s.ids), scored) for s in reference],
            "random tokens": [
                as_sample(np.r_[s.ids[:1], rng.integers(0, vocab, len(s.ids) - 1)].astype(np.int32), scored)
                for s in reference
            ],
        }
        line = WeightLine(self.engine.model, {})
        out: dict[str, Any] = {}
        for kind, samples in kinds.items():
            states = [(line.states(s.ids, s.rows), s.targets) for s in samples]
            out[kind] = {space: [output_value(space, st, y) for st, y in states] for space in ("logit", "hidden")}
        return out

    def prediction(self, label: str) -> dict[str, Any]:
        """Agreement of predicted and measured σ; round-to-nearest shares one set of draws over all widths."""
        if label != "rtn":
            options = replace(self.options, spaces=TYPE_SPACES.get(self.name, self.options.spaces))
            noise = measure_noise(self.own, self.weights(label))
            made = {label: predict_windows(self.engine.model, noise, self.used, options)[1.0]}
        else:
            noises = {b: measure_noise(self.own, self.weights(f"rtn:{b}")) for b in BITS}
            factors = {b: noises[b].norm / noises[BITS[0]].norm for b in BITS}
            found = predict_windows(self.engine.model, noises[BITS[0]], self.used, self.options, list(factors.values()))
            made = {f"rtn:{b}": found[factors[b]] for b in BITS}
        out: dict[str, Any] = {}
        for candidate, spaces in made.items():
            rows = self.piece(candidate, lambda c=candidate: self.rows(c))["rows"]
            out[candidate] = {
                space: {how: agreement_row(agreement(p, measured_sigma(rows, space))) for how, p in ways.items()}
                for space, ways in spaces.items()
            }
        return out

    def document(self) -> dict[str, Any]:
        labels = [f"rtn:{b}" for b in BITS] + list(TYPES)
        candidates: dict[str, Any] = {label: dict(self.piece(label, lambda c=label: self.rows(c))) for label in labels}
        departed = self.piece("departures", self.departures)
        for label in labels:
            entry = candidates[label]
            for space in self.options.spaces:
                kinds = [
                    Departure(k, auroc(departed["reference"][space], v[space]))
                    for k, v in departed.items()
                    if k != "reference" and space in v
                ]
                entry.setdefault("verdicts", {})[space] = asdict(judge(_floats(entry["rows"]), space, kinds))
        for label in labels if self.name != "lm10m" else GN_CANDIDATES:
            candidates[label]["gauss_newton"] = self.piece(f"{label}-gn", lambda c=label: self.gauss_newton(c))
        for label in CURVED:
            candidates[label]["curve"] = self.piece(f"{label}-curve", lambda c=label: self.curve(c))
        for label in PREDICTED:
            for candidate, found in self.piece(f"{label}-predict", lambda c=label: self.prediction(c)).items():
                candidates[candidate]["prediction"] = found
        return {
            "options": asdict(self.options),
            "parameters": int(sum(w.size for w in self.own.values())),
            "gauss_newton_windows": GN_WINDOWS[self.name],
            "gauss_newton_positions": GN_POSITIONS,
            "llamacpp_logits": self.piece("check", self.check),
            "departures": departed,
            "candidates": candidates,
        }


def _floats(rows: list[Any]) -> list[Any]:
    """Rows read from JSON, null as NaN again."""
    return [
        {space: {k: math.nan if v is None else v for k, v in row.items()} for space, row in spaces.items()}
        for spaces in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="held-out text of lm10m's kind")
    parser.add_argument("--other", type=Path, required=True, help="text of another kind, for the departures")
    parser.add_argument("--quants", type=Path, default=Path("fisher-study/quants"))
    parser.add_argument("--cache", type=Path, default=Path("fisher-study/cache"))
    parser.add_argument("--only", choices=list(FILES), action="append", help="these models only")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fisher_study.json")
    given = parser.parse_args()
    import torch
    import transformers

    document = {
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "models": {name: Study(name, given).document() for name in given.only or FILES},
    }
    write_bytes(given.out, (to_json(_rounded(document), indent=None) + "\n").encode())


def _rounded(value: Any) -> Any:
    """Six significant digits: the file stays small, and nothing is known better."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


if __name__ == "__main__":
    main()
