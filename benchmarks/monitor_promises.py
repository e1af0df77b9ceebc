"""What the monitor promises and what it detects, on trajectories of a real model.

    python benchmarks/monitor_promises.py --models DIR --books books.txt --wiki wiki.txt --code code.txt --work DIR

Trajectories are recorded once into ``--work`` (a condition that is there is not recorded again), then:

* promises: false alarms of a calibration over fresh trajectories; the same over resampled calibrations, with the
  exceedance of the PAC version; beside it rules that promise nothing.
* detection: streams under other prompts and other weights, by each statistic alone and by all together at the same
  promised rate, with the token of the first alarm; entropy and NLL as baselines.
* fleet drift: streams until the martingale crosses, and how often it crosses while nothing drifts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.decoding import Tokens, open_decoder
from quantvane.engines.llamacpp import build_string
from quantvane.engines.registry import open_engine
from quantvane.monitor import Fingerprint, FleetMartingale, StreamSummary
from quantvane.monitor.averages import DEFAULT_STATISTICS
from quantvane.monitor.fit import Settings, alarmed, binomial_band, fit, rate_of, split, thresholds_of
from quantvane.monitor.trajectories import averages, base_of, extremes, scores, stack, statistic
from quantvane.report.render import png, spec_text, svg
from quantvane.report.theme import FLOOR, INK, SERIES, finish
from quantvane.run.calibrate_work import fingerprint_of
from quantvane.run.trajectories import Sampling, generate_group, prompts_of_text, random_prompts
from quantvane.spec import ModelSpec
from quantvane.store.atomic import read_json, write_json
from quantvane.store.journal import Journal
from quantvane.store.manifest import package_versions
from quantvane.store.trajectories import (
    journal_trajectories,
    read_trajectories,
    trajectory_batch,
    write_trajectories,
)
from quantvane.types import FloatArray

PROMPT, HORIZON, SLOTS = 24, 64, 16
CACHE = "?cache_type_k=f16&cache_type_v=f16&n_threads=1"
ALPHA, DELTA = 0.05, 0.1
EACH = 600  # trajectories of a resampled calibration
TOKENS = (2, 4, 8, 16, 24, 32, 48, 64)
# Each set of statistics is calibrated by itself at α: sets compare at the same promised rate.
SETS: dict[str, tuple[str, ...]] = {
    "σ (two-sided)": ("sigma_high", "sigma_low"),
    "entropy (two-sided)": ("entropy_high", "entropy_low"),
    "consecutive KL (two-sided)": ("kl_high", "kl_low"),
    "low σ, high entropy": ("flat",),
    "NLL of the chosen token": ("nll_high",),
    "all (default)": DEFAULT_STATISTICS,
    "all, NLL and low sides too": (*DEFAULT_STATISTICS, "entropy_low", "kl_low", "nll_high"),
}


def conditions(args: Any) -> dict[str, tuple[str, int, int, Callable[[Any, int, int], list[Tokens]]]]:
    """Name → (quant, trajectories, seed, prompts of (engine, count, seed))."""

    def text(path: Path) -> Callable[[Any, int, int], list[Tokens]]:
        return lambda engine, n, seed: prompts_of_text(engine, [path.read_text()], n, PROMPT, seed)

    def shuffled(engine: Any, n: int, seed: int) -> list[Tokens]:
        rng = np.random.default_rng(seed)
        return [
            np.concatenate([p[:-PROMPT], rng.permutation(p[-PROMPT:])]).astype(np.int32)
            for p in text(args.books)(engine, n, seed)
        ]

    books = text(args.books)
    return {
        "calibration": ("Q8_0", args.calibration, 0, books),
        "fresh": ("Q8_0", args.fresh, 1, books),
        "Q4_K_M swapped in": ("Q4_K_M", args.shifted, 3, books),
        "Q2_K swapped in": ("Q2_K", args.shifted, 4, books),
        "prompts: encyclopedia": ("Q8_0", args.shifted, 5, text(args.wiki)),
        "prompts: code": ("Q8_0", args.shifted, 6, text(args.code)),
        "prompts: shuffled tokens": ("Q8_0", args.shifted, 7, shuffled),
        "prompts: random tokens": ("Q8_0", args.shifted, 8, lambda e, n, s: random_prompts(e, n, PROMPT, s)),
    }


def record(args: Any) -> tuple[dict[str, FloatArray], Fingerprint]:
    """Every condition's trajectories (n, HORIZON, 5), recorded where they are not there yet."""
    found: dict[str, FloatArray] = {}
    for name, (quant, count, seed, prompts) in conditions(args).items():
        path = args.work / (name.replace(" ", "_").replace(":", "") + ".parquet")
        if not path.exists():
            (model,) = args.models.glob(f"*-{quant}.gguf")
            engine = open_engine(ModelSpec.parse(f"{model}{CACHE}"), 512)
            sampling = Sampling(1.0, 20, HORIZON, "raw", seed)
            tokens = prompts(engine, count, seed)
            decoder = open_decoder(engine, max(map(len, tokens)) + HORIZON, SLOTS)
            begun = time.monotonic()
            journal_path = path.with_suffix(".journal")
            rows, _ = journal_trajectories(journal_path)
            with Journal(journal_path) as journal:
                for at in range(len(rows), count, SLOTS):
                    unit = generate_group(decoder, tokens[at : at + SLOTS], at, sampling)
                    journal.append([trajectory_batch(unit, at)])
                    rows += unit
            decoder.close()
            mark = fingerprint_of(engine, sampling)
            engine.close()
            about = {"fingerprint": {f: getattr(mark, f) for f in mark.__slots__}, "condition": name}
            write_trajectories(path, rows, about)
            journal_path.unlink()
            print(f"{name}: {count} trajectories in {time.monotonic() - begun:.0f} s", flush=True)
        rows, about = read_trajectories(path)
        found[name] = stack(rows, HORIZON)
        if name == "calibration":
            fingerprint = Fingerprint(**about["fingerprint"])
    return found, fingerprint


def false_alarms(data: FloatArray, calibration: Any) -> np.ndarray[Any, Any]:
    names = calibration.statistics
    return alarmed(extremes(data, calibration.base, calibration.smoothing, names), calibration.thresholds)


def promises(data: dict[str, FloatArray], mark: Fingerprint, resamples: int) -> dict[str, Any]:
    """False alarms of one calibration over fresh trajectories, and of many resampled ones."""
    out: dict[str, Any] = {"alpha": ALPHA, "delta": DELTA, "one_calibration": {}, "resampled": {}}
    fresh = data["fresh"]
    for method in ("joint", "bonferroni"):
        for delta in (None, DELTA):
            cal = fit(data["calibration"], mark, Settings(ALPHA, delta, method))
            band = binomial_band(len(fresh), ALPHA)
            rate = rate_of(false_alarms(fresh, cal))
            key = f"{method}, {'PAC' if delta else 'split'}"
            out["one_calibration"][key] = {**rate, "band": band, "thresholds_from": cal.n}
    # Resampled: the pool of all healthy trajectories is taken for the truth. Calibrations draw from it with
    # replacement; the rate of each is then exact, with no sampling error of its own.
    pool = np.concatenate([data["calibration"], fresh])
    rng = np.random.default_rng(0)
    rules = {
        f"{method}, {'PAC' if delta else 'split'}": Settings(ALPHA, delta, method)
        for method in ("joint", "bonferroni")
        for delta in (None, DELTA)
    }
    found: dict[str, list[float]] = {key: [] for key in rules}
    for _ in range(resamples):
        draw = rng.integers(0, len(pool), EACH)
        first, second, _ = split(EACH)
        tuning, own = draw[:first], draw[first : first + second]
        base = base_of(pool[tuning], 0.1)
        all_of = extremes(pool, base, 0.1, DEFAULT_STATISTICS)
        parts = [{k: v[part] for k, v in all_of.items()} for part in (tuning, own)]
        for key, rule in rules.items():
            found[key].append(float(alarmed(all_of, thresholds_of(*parts, rule)).mean()))
    for key, values in found.items():
        rates = np.array(values)
        out["resampled"][key] = {
            "calibrations": resamples, "trajectories_each": EACH, "thresholds_from": split(EACH)[1],
            "mean_rate": float(rates.mean()), "mean_rate_error": float(rates.std(ddof=1) / np.sqrt(resamples)),
            "exceedance": rate_of(rates > ALPHA), "rate_quantiles": np.quantile(rates, [0.05, 0.5, 0.95]).tolist(),
        }  # fmt: skip
    return out


def naive(data: dict[str, FloatArray], mark: Fingerprint) -> dict[str, Any]:
    """Rules without a promise, on the same trajectories: share of fresh streams with an alarm."""
    cal = fit(data["calibration"], mark, Settings(ALPHA))
    out: dict[str, Any] = {}
    for label, smoothing in (("every token by itself", 1.0), ("the same averages", cal.smoothing)):
        for name in ("sigma_high", "entropy_high", "kl_high"):
            own = statistic(name, averages(data["calibration"], cal.base, smoothing), cal.base)
            new = statistic(name, averages(data["fresh"], cal.base, smoothing), cal.base)
            seen = own[np.isfinite(own)]
            if name == "sigma_high":  # mean + 3 sd of σ itself, as such rules are written
                own, new, seen = np.exp(own), np.exp(new), np.exp(seen)
            high = {"95% quantile of tokens": np.quantile(seen, 0.95), "mean + 3 sd": seen.mean() + 3 * seen.std()}
            for rule, limit in high.items():
                row = {"threshold": float(limit), "alarm_rate": rate_of(np.nanmax(new, axis=1) > limit)}
                if name == "sigma_high":
                    row["largest_possible"] = 0.5 / cal.base.lambda_max
                out[f"{name}, {label}, {rule}"] = row
    return out


def first_alarm(data: FloatArray, cal: Any) -> FloatArray:
    smooth = averages(data, cal.base, cal.smoothing)
    with np.errstate(invalid="ignore"):
        over = np.any([statistic(k, smooth, cal.base) > x for k, x in cal.thresholds.items()], axis=0)
    return np.where(over.any(axis=1), over.argmax(axis=1), np.inf)


def detection(data: dict[str, FloatArray], mark: Fingerprint, smoothing: float) -> dict[str, Any]:
    """Share of streams that alarm and the median token of the first alarm, by condition and set of statistics."""
    out: dict[str, Any] = {}
    for label, names in SETS.items():
        cal = fit(data["calibration"], mark, Settings(ALPHA, None, "joint", names, smoothing))
        rows: dict[str, Any] = {}
        for condition, trajectories in data.items():
            if condition == "calibration":
                continue
            at = first_alarm(trajectories, cal)
            hit = at[np.isfinite(at)]
            rows[condition] = {
                **rate_of(np.isfinite(at)),
                "first_alarm_median": float(np.median(hit)) if len(hit) else None,
                "first_alarm_p90": float(np.quantile(hit, 0.9)) if len(hit) else None,
                "by_token": [float((at < t).mean()) for t in TOKENS],
            }
        out[label] = rows
    return out


def stream_means(data: dict[str, FloatArray], mark: Fingerprint) -> dict[str, Any]:
    """Mean and standard deviation over streams of each stream's mean ln σ, entropy, KL and NLL."""
    cal = fit(data["calibration"], mark, Settings(ALPHA))
    return {
        condition: {
            name: {"mean": float(x.mean()), "error": float(x.std(ddof=1) / np.sqrt(len(x))), "sd": float(x.std(ddof=1))}
            for name, x in scores(rows, cal.base).items()
        }
        for condition, rows in data.items()
    }


def summary(values: dict[str, float]) -> StreamSummary:
    return StreamSummary(HORIZON, None, (), "NOMINAL", {}, values)


def fleet(data: dict[str, FloatArray], mark: Fingerprint, runs: int, alpha: float = 0.01) -> dict[str, Any]:
    """Streams until drift shows: 50 healthy ones, then 350 of a condition; and healthy ones only."""
    cal = fit(data["calibration"], mark, Settings(ALPHA))
    means = {name: scores(rows, cal.base) for name, rows in data.items()}
    rng = np.random.default_rng(1)

    def one(condition: str, healthy: int, length: int, which: Sequence[str]) -> int | None:
        martingale = FleetMartingale(cal, alpha=alpha, scores=which, seed=int(rng.integers(1 << 30)))
        first = rng.permutation(len(data["fresh"]))[:healthy]
        later = rng.permutation(len(data[condition]))[: length - healthy]
        for source, order in (("fresh", first), (condition, later)):
            for i in order:
                martingale.update(summary({k: float(v[i]) for k, v in means[source].items()}))
                if martingale.crossed is not None:
                    return martingale.crossed
        return None

    out: dict[str, Any] = {"alpha": alpha, "runs": runs}
    # Without drift: pooled and divided anew each time, so that calibration and fleet are exchangeable by construction.
    pool = {k: np.concatenate([means["calibration"][k], means["fresh"][k]]) for k in means["fresh"]}
    false = 0
    for _ in range(runs):
        order = rng.permutation(len(pool["sigma"]))
        own = {k: v[order[:1000]].tolist() for k, v in pool.items()}
        martingale = FleetMartingale(own, alpha=alpha, seed=int(rng.integers(1 << 30)))
        for i in order[1000:1500]:
            martingale.update(summary({k: float(v[i]) for k, v in pool.items()}))
        false += martingale.crossed is not None
    out["no drift, 500 streams"] = rate_of([True] * false + [False] * (runs - false))
    few = max(runs // 10, 10)
    for condition in data:
        if condition in ("calibration", "fresh"):
            continue
        rows = {}
        for label, which in (("all scores", ()), ("σ alone", ("sigma",)), ("entropy alone", ("entropy",))):
            found = [one(condition, 50, 450, which) for _ in range(few)]
            delays = [n - 50 for n in found if n is not None and n > 50]
            rows[label] = {
                "runs": few, "shown": len(delays), "before_the_change": sum(n is not None and n <= 50 for n in found),
                "median_streams": float(np.median(delays)) if delays else None,
            }  # fmt: skip
        out[condition] = rows
    return out


def chart(result: dict[str, Any]) -> Any:
    """Share of streams that alarm, with its interval, by condition and set of statistics."""
    import altair as alt

    shown = {
        "all (default)": ("all (default)", SERIES[3]), "σ (two-sided)": ("σ", SERIES[1]),
        "consecutive KL (two-sided)": ("consecutive KL", SERIES[0]), "entropy (two-sided)": ("entropy", SERIES[2]),
        "NLL of the chosen token": ("NLL", INK),
    }  # fmt: skip
    words = {"fresh": "nothing changed"}
    rows = [
        {"condition": words.get(condition, condition), "set": shown[label][0], "share": row["value"],
         "low": row["ci"][0], "high": row["ci"][1]}
        for label, found in result["detection"].items()
        if label in shown
        for condition, row in found.items()
    ]  # fmt: skip
    order = [words.get(name, name) for name in next(iter(result["detection"].values()))]
    names = [name for name, _ in shown.values()]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("condition:N", sort=order, title=None, axis=alt.Axis(grid=True, bandPosition=0, tickBand="extent")),
        yOffset=alt.YOffset("set:N", sort=names),
        color=alt.Color("set:N", title="statistic", sort=names, scale=alt.Scale(
            domain=names, range=[colour for _, colour in shown.values()])),
    )  # fmt: skip
    x = alt.X("low:Q", title="streams that alarm within 64 tokens", axis=alt.Axis(format="%"),
              scale=alt.Scale(domain=[0, 0.4]))  # fmt: skip
    bars = base.mark_rule(strokeWidth=1.5).encode(x=x, x2="high:Q")
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(
        x="share:Q", shape=alt.Shape("set:N", title="statistic", sort=names, scale=alt.Scale(
            domain=names, range=["circle", "square", "triangle-up", "diamond", "cross"])))  # fmt: skip
    promise = alt.Chart(alt.Data(values=[{"at": result["promises"]["alpha"]}]))
    line = promise.mark_rule(color=FLOOR, strokeDash=[4, 3], strokeWidth=1.5).encode(x="at:Q")
    return finish(
        alt.layer(line, bars, dots).properties(width=520, height=alt.Step(13)),
        "A single stream seldom gives a departure away",
        ["Share of streams that alarm, with 95% interval; each statistic calibrated alone at a promised 5% (dashed).",
         "Right of the line a departure shows; left of it the monitor is blind to it. lm10m Q8_0, top 20."],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    inputs = {
        "models": "directory of NAME-TYPE.gguf", "books": "text of the model's own domain", "wiki": "encyclopedic text",
        "code": "program text", "work": "where trajectories are kept",
    }  # fmt: skip
    for name, words in inputs.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=words)
    parser.add_argument("--calibration", type=int, default=2000)
    parser.add_argument("--fresh", type=int, default=1000)
    parser.add_argument("--shifted", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--fleets", type=int, default=500)
    parser.add_argument("--record-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "monitor_promises.json")
    parser.add_argument("--chart", type=Path, help="PNG to draw of the detection table")
    parser.add_argument("--redraw", action="store_true", help="only draw --chart from the results in --out")
    args = parser.parse_args()
    if args.redraw:
        args.chart.write_bytes(png(svg(spec_text(chart(read_json(args.out))))))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    data, mark = record(args)
    if args.record_only:
        return
    result = {
        "schema": 1,
        "settings": {
            "prompt_tokens": PROMPT, "horizon": HORIZON, "top_k": 20, "temperature": 1.0,
            "calibration": args.calibration, "fresh": args.fresh, "shifted": args.shifted,
        },
        "promises": promises(data, mark, args.resamples),
        "naive": naive(data, mark),
        "detection": detection(data, mark, 0.1),
        "detection_by_smoothing": {str(a): detection(data, mark, a)["all (default)"] for a in (0.03, 0.1, 0.3, 1.0)},
        "stream_means": stream_means(data, mark),
        "fleet": fleet(data, mark, args.fleets),
        "engine": build_string(),
        "versions": package_versions(),
    }  # fmt: skip
    write_json(args.out, result)
    if args.chart:
        args.chart.parent.mkdir(parents=True, exist_ok=True)
        args.chart.write_bytes(png(svg(spec_text(chart(result)))))


if __name__ == "__main__":
    main()
