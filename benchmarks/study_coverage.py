"""Do the study's nulls, ceilings and intervals keep their promises? Simulated cohorts with a known truth, as JSON.

    python benchmarks/study_coverage.py [TRIALS]     # 1000 by default; writes benchmarks/results/study_coverage.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "statistical"), str(HERE.parent / "tests")]

import numpy as np  # noqa: E402
import scipy  # noqa: E402
import study_trials as t  # noqa: E402


def measure(trials: int) -> dict[str, object]:
    steps = {
        **{
            f"interval over candidates, n={n}, r={r}": lambda n=n, r=r: t.candidate_intervals(trials, n, r)
            for n in (12, 20, 30, 45)
            for r in (0.0, -0.5, -0.85)
        },
        **{f"permutation test, level, n={n}": lambda n=n: t.permutation_level(trials, n) for n in (12, 30)},
        "interval over items": lambda: t.item_intervals(trials),
        "null: the relation holds in the zone": lambda: t.null_law(trials, t.relation_holds),
        "null: the zone is silent": lambda: t.null_law(trials, t.silent_near),
        "ceiling": lambda: t.ceiling_against_truth(trials),
        "zone test: metric of volume only": lambda: t.zone_tests(trials, lambda rng, v, d: v),
        "zone test: metric of pure noise": lambda: t.zone_tests(trials, lambda rng, v, d: rng.normal(size=len(v))),
        "zone test: metric of direction": lambda: t.zone_tests(trials, lambda rng, v, d: -v * d),
        "intervals over items, per item": lambda: t.item_estimators(trials),
    }
    found: dict[str, object] = {}
    for name, step in steps.items():
        found[name] = step()
        print(name, found[name], file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    begun = time.perf_counter()
    document = {
        "schema": 1,
        "trials": count,
        "results": measure(count),
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
        "seconds": round(time.perf_counter() - begun),
    }
    target = HERE / "results" / "study_coverage.json"
    if count >= 1000:
        target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        print(json.dumps(document, indent=1, ensure_ascii=False))
