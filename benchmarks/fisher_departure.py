"""Does λ_max tell that a model left the text it knows? AUROC of σ in three spaces beside simpler statistics.

For each model, windows of in-distribution text (or text the model itself wrote: ``--known-of NAME=self`` draws it at
temperature 1, which is in-distribution whatever the model was trained on) against windows of other text, of code, of
the same windows' tokens shuffled, and of tokens drawn uniformly. Statistics, per window (mean over scored positions;
the head's λ_max is of the window's own F) and per token:

    sigma_logit, sigma_hidden, sigma_head   λ_max over the mean of the calibration windows' λ_max
    entropy, nll, one_minus_p1, grad_norm   −Σ p ln p; −ln p(y); 1 − p₁; ‖e_y − p‖²

A quarter of the in-distribution windows is set apart to calibrate λ_base and is not scored. AUROC is the probability
that a departed window (token) has the larger value, ties half: 0.5 says nothing, 0 tells the two apart as well as 1
does, in the other direction. Intervals: 95%, percentile bootstrap over windows (tokens stay with their window).

Run: python benchmarks/fisher_departure.py --known BOOK.txt --other OTHER.txt --code SOURCE.py --out DIR
         --model NAME=MODEL.gguf [--model …] [--known-of NAME=TEXT|self] [--ctx 128] [--chunks 40]
Writes DIR/fisher_departure.json and DIR/fisher-departure.png (and .svg).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from quantvane.corpora.text import WindowRule, peer_windows, read_corpus
from quantvane.engines.output_head import output_heads
from quantvane.engines.registry import open_engine
from quantvane.fisher import OutputMap, head_empirical, hidden_lambda, lambda_max
from quantvane.spec import ModelSpec
from quantvane.types import Window

TOKEN = ("sigma_logit", "sigma_hidden", "sigma_head", "entropy", "nll", "one_minus_p1", "grad_norm")
Stats = dict[str, np.ndarray]


def readings(engine: Any, windows: Sequence[Window], steps: int) -> dict[str, Any]:
    """{"tokens": name → (W, n), "windows": name → (W,)}; σ still λ_max, not yet divided by its base."""
    head = output_heads(engine)[0]
    space = OutputMap(head.weight, head.bias, head.scale, head.softcap)
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in TOKEN}
    of_head = []
    for window in windows:
        h = np.concatenate([head.round(np.asarray(b, np.float32)).copy() for b in engine.hidden([window])])
        y = window.targets[window.scored]
        z = space.logits(h)
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        total = e.sum(axis=1)
        p, rows = e / total[:, None], np.arange(len(y))
        logp = z - np.log(total)[:, None]
        best = p.argmax(axis=1)
        rest = e.copy()
        rest[rows, best] = 0.0
        logit = lambda_max(z)
        tokens["sigma_logit"].append(logit)
        tokens["sigma_hidden"].append(hidden_lambda(space, h, np.random.default_rng(0), steps=steps, top=16).value)
        tokens["sigma_head"].append(logit * (h.astype(np.float64) ** 2).sum(axis=1))  # one token: ‖h‖²·λ_logit
        tokens["entropy"].append(-(p * logp).sum(axis=1))
        tokens["nll"].append(-logp[rows, y])
        tokens["one_minus_p1"].append(rest.sum(axis=1) / total)
        tokens["grad_norm"].append((p**2).sum(axis=1) - 2 * p[rows, y] + 1)
        of_head.append(head_empirical(space, h, y).value)
    held = {name: np.stack(parts) for name, parts in tokens.items()}
    means = {name: values.mean(axis=1) for name, values in held.items()}
    return {"tokens": held, "windows": {**means, "sigma_head": np.array(of_head)}}


def auroc(known: np.ndarray, departed: np.ndarray) -> float:
    """P(departed > known) + ½ P(equal), from ranks."""
    ranks = rankdata(np.concatenate([known.ravel(), departed.ravel()]))
    n, m = known.size, departed.size
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def interval(known: np.ndarray, departed: np.ndarray, seed: int, resamples: int) -> dict[str, Any]:
    """AUROC with its bootstrap interval over windows (first axis)."""
    rng = np.random.default_rng(seed)
    draws = [
        auroc(known[rng.integers(0, len(known), len(known))], departed[rng.integers(0, len(departed), len(departed))])
        for _ in range(resamples)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": round(auroc(known, departed), 4), "ci": [round(float(low), 4), round(float(high), 4)]}


def departures(engine: Any, known: list[Window], texts: dict[str, str], rule: WindowRule) -> dict[str, list[Window]]:
    """Kinds of departed windows, as many as known ones at most."""
    out = {name: peer_windows(engine, read_corpus(path), rule, 0)[: len(known)] for name, path in texts.items()}
    rng = np.random.default_rng(1)
    usable = [i for i, piece in enumerate(engine.vocabulary.pieces) if piece is not None]
    usable = [i for i in usable if i not in (engine.vocabulary.bos, engine.vocabulary.eos)]
    for name in ("shuffled", "random"):
        made = []
        for window in known:
            fed = window.tokens.copy()
            start = int(engine.vocabulary.add_bos)
            body = fed[start:]
            fed[start:] = rng.permutation(body) if name == "shuffled" else rng.choice(usable, len(body))
            made.append(replace(window, tokens=fed, targets=np.append(fed[1:], fed[:1])))
        out[name] = made
    return out


def written(engine: Any, count: int, rule: WindowRule) -> list[Window]:
    """Windows the model wrote itself: BOS, then token by token from its own distribution."""
    rng, n = np.random.default_rng(2), rule.context
    fed = np.full((count, n + 1), engine.vocabulary.bos, np.int32)
    for t in range(1, n + 1):
        last = np.zeros(t, bool)
        last[-1] = True
        ask = [Window(row[:t].copy(), np.zeros(t, np.int32), last, i, 0, 0) for i, row in enumerate(fed)]
        z = np.concatenate([block.copy() for block in engine.logits(ask)]).astype(np.float64)
        fed[:, t] = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    scored = np.zeros(n, bool)
    scored[n // 2 : n - 1] = True
    return [Window(row[:n].copy(), row[1:].copy(), scored, i, 0, 0) for i, row in enumerate(fed)]


def study(model: str, known_text: str, texts: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    engine = open_engine(ModelSpec.parse(model), options.ctx)
    rule = WindowRule(options.ctx, options.ctx // 2, options.chunks)
    own = known_text == "self"
    cut = written(engine, options.chunks, rule) if own else peer_windows(engine, read_corpus(known_text), rule, 0)
    calibration, known = cut[::4], [w for i, w in enumerate(cut) if i % 4]
    kinds = {"known": known, **departures(engine, known, texts, rule)}
    base = readings(engine, calibration, options.steps)
    found = {kind: readings(engine, windows, options.steps) for kind, windows in kinds.items()}
    engine.close()
    result: dict[str, Any] = {
        "known": "written by itself" if own else Path(known_text).name,
        "windows": {kind: len(windows) for kind, windows in kinds.items()},
        "lambda_base": {k[6:]: float(base["windows"][k].mean()) for k in TOKEN[:3]},
        "auroc": {},
        "medians": {},
    }
    for kind, read in found.items():
        result["medians"][kind] = {
            k: float(np.median(v / base["windows"][k].mean() if k.startswith("sigma") else v))
            for k, v in read["windows"].items()
        }
        if kind != "known":
            # dividing by λ_base changes no order, so the AUROC of σ is that of λ_max
            result["auroc"][kind] = {
                "window": {
                    k: interval(found["known"]["windows"][k], read["windows"][k], 0, options.resamples) for k in TOKEN
                },
                "token": {
                    k: interval(found["known"]["tokens"][k], read["tokens"][k], 0, options.resamples // 5)
                    for k in TOKEN
                },
            }
    return result


def chart(document: dict[str, Any]) -> Any:
    """AUROC per window by statistic and kind, one panel a model."""
    import altair as alt

    from quantvane.report.marks import data
    from quantvane.report.theme import FLOOR, INK, SERIES, finish

    words = {
        "sigma_logit": "σ logit", "sigma_hidden": "σ hidden", "sigma_head": "σ head, window", "entropy": "entropy",
        "nll": "NLL", "one_minus_p1": "1 − p₁", "grad_norm": "‖e_y − p‖²",
    }  # fmt: skip
    panels: list[Any] = []
    x_scale = alt.Scale(domain=[0, 1])
    for name, found in document["models"].items():
        rows = [
            {"statistic": words[k], "kind": kind, "value": v["value"], "low": v["ci"][0], "high": v["ci"][1]}
            for kind, entry in found["auroc"].items()
            for k, v in entry["window"].items()
        ]
        kinds = list(found["auroc"])
        y = alt.Y("statistic:N", sort=list(words.values()), title=None,
                  axis=alt.Axis(ticks=False, domain=False) if not panels else None)  # fmt: skip
        offset = alt.YOffset("kind:N", sort=kinds)
        colour = alt.Color("kind:N", sort=kinds, scale=alt.Scale(domain=kinds, range=list(SERIES)),
                           legend=alt.Legend(orient="bottom", title="against"))  # fmt: skip
        shapes = ["circle", "square", "triangle-up", "cross"]
        shape = alt.Shape("kind:N", sort=kinds, scale=alt.Scale(domain=kinds, range=shapes),
                          legend=alt.Legend(orient="bottom", title="against"))  # fmt: skip
        base = alt.Chart(data(rows))
        half = alt.Chart(data([{"half": 0.5}])).mark_rule(color=FLOOR, strokeDash=[5, 3])
        title = "AUROC (departed larger)"
        layers = [
            half.encode(x=alt.X("half:Q", scale=x_scale, title=title)),
            base.mark_rule(color=INK).encode(x=alt.X("low:Q", scale=x_scale, title=title), x2="high:Q", y=y,
                                             yOffset=offset),
            base.mark_point(filled=True, size=60, opacity=1, stroke=INK, strokeWidth=0.6).encode(
                x=alt.X("value:Q", scale=x_scale, title=title), y=y, yOffset=offset, color=colour, shape=shape
            ),
        ]  # fmt: skip
        heading = alt.TitleParams(text=f"{name} (known: {found['known']})", anchor="start", fontSize=12)
        panels.append(alt.layer(*layers).properties(width=260, height=alt.Step(11), title=heading))
    subtitle = [
        "Per window: probability that departed text has the larger value. Dashed, 0.5: no information; near 0 or 1: "
        "told apart,",
        "0 meaning that the departed text has the smaller value. Whiskers: 95% intervals over windows.",
    ]
    return finish(alt.hconcat(*panels, spacing=22), "Which statistic notices that a model left the text it knows",
                  subtitle)  # fmt: skip


def pairs(items: Sequence[str]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=SPEC")
    parser.add_argument("--known", required=True, help="in-distribution text of every model")
    parser.add_argument("--known-of", action="append", default=[], metavar="NAME=TEXT", help="of one model instead")
    parser.add_argument("--other", required=True)
    parser.add_argument("--code", required=True, help="a file, or a directory of .py files")
    parser.add_argument("--ctx", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args()
    known_of = pairs(options.known_of)
    place = options.out / "fisher_departure.json"
    settings = {key: getattr(options, key) for key in ("ctx", "chunks", "steps", "resamples")}
    held = json.loads(place.read_text()) if place.exists() else {}
    # a model measured before under the same settings is not measured again
    models = held.get("models", {}) if {key: held.get(key) for key in settings} == settings else {}
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(options.code)
        if code.is_dir():  # as text, one file after another
            joined = Path(folder) / "code.txt"
            joined.write_text("\n".join(f.read_text("utf-8") for f in sorted(code.glob("*.py"))[:40]), "utf-8")
            code = joined
        texts = {"other text": options.other, "code": str(code)}
        for name, spec in pairs(options.model).items():
            if name not in models:
                models[name] = study(spec, known_of.get(name, options.known), texts, options)
                document = {**settings, "python": platform.python_version(), "numpy": np.__version__, "models": models}
                place.write_text(json.dumps(document, indent=1) + "\n")
    document = json.loads(place.read_text())
    from quantvane.report.render import png, spec_text, svg

    drawing = svg(spec_text(chart(document)))
    (options.out / "fisher-departure.svg").write_text(drawing)
    (options.out / "fisher-departure.png").write_bytes(png(drawing))
    print(json.dumps({name: m["auroc"] for name, m in models.items()}, indent=1))


if __name__ == "__main__":
    main()
