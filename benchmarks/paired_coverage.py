"""Prints the tables of docs/direction.md: python benchmarks/paired_coverage.py [TRIALS]"""

from __future__ import annotations

import sys
from pathlib import Path

from quantvane.stats.equivalence import items_needed
from quantvane.stats.pairs import PairCounts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "statistical"))

import paired_trials as trials

RATES = ((0.01, 0.01), (0.02, 0.05), (0.05, 0.05), (0.05, 0.15), (0.11, 0.11))


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print("exact: leapfrog rate, drop rate | n | Δ inside (below/above) | D inside")
    for up, down in RATES:
        for n in (50, 200, 800):
            if n == 800 and (up, down) != (0.02, 0.05):
                continue
            hits = trials.exact_coverage(n, up, down)
            way = trials.exact_direction_coverage(n, up, down)
            print(f"{up} {down} | {n} | {hits.inside:.1f} ({hits.below:.1f} / {hits.above:.1f}) | {way:.1f}")
    print("exact: McNemar size (n, flips):")
    for n, flips in ((50, 0.1), (200, 0.1), (200, 0.22), (800, 0.1)):
        print(f"{n} {flips} | {trials.exact_mcnemar_size(n, flips):.1f}")
    print("exact: equivalence at its margin (n, flips, margin)")
    for n, flips, margin in ((200, 0.06, 0.05), (200, 0.1, 0.05), (400, 0.1, 0.05), (400, 0.22, 0.1), (600, 0.06, 0.02),
                             (1000, 0.03, 0.02)):  # fmt: skip
        ends = [((flips + s * margin) / 2, (flips - s * margin) / 2) for s in (1, -1)]
        print(f"{n} {flips} {margin} | {max(trials.exact_equivalence_rate(n, *end, margin) for end in ends):.2f}")
    grid = [
        (trials.exact_equivalence_rate(n, (f + s * m) / 2, (f - s * m) / 2, m), n, f, m)
        for n in (50, 100, 200, 400) for m in (0.02, 0.05) for f in (m, 1.5 * m, 2 * m, 4 * m) for s in (1, -1)
    ]  # fmt: skip
    print("largest of", len(grid), "|", max(grid))
    print("exact: power at items_needed (flips, margin)")
    for flips, margin in ((0.05, 0.05), (0.1, 0.05), (0.2, 0.05), (0.05, 0.03)):
        n = items_needed(PairCounts(10000, round(5000 * flips), round(5000 * flips)), margin).items
        print(f"{flips} {margin} | {n} | {trials.exact_equivalence_rate(n, flips / 2, flips / 2, margin):.1f}")
    print(f"clustered, {runs} trials: G, rates, margin | Δ, D, McNemar, equivalent, design effect")
    for groups, up, down, margin in ((20, 0.1, 0.1, 0.05), (80, 0.05, 0.05, 0.05), (80, 0.05, 0.1, 0.05),
                                     (200, 0.05, 0.05, 0.02), (200, 0.05, 0.1, 0.05)):  # fmt: skip
        print(groups, up, down, margin, "|", trials.clustered_rates(1, runs, groups, up, down, margin))
    print(f"peeking, {runs} trials: items, flips | e ≥ 20 ever")
    for n, flips in ((2000, 0.02), (2000, 0.1), (2000, 0.4)):
        print(n, flips, "|", trials.peeking_error(2, runs, n, flips))
    print("fickle |", trials.peeking_error(3, runs // 2, 1000, 0.1, fickle=True))
    print(f"sequential, {runs} trials: items, rates, margin, clusters")
    for n, up, down, margin, groups in (
        (2000, 0.05, 0.05, 0.05, False), (2000, 0.05, 0.1, 0.05, False), (2000, 0.1, 0.05, 0.05, False),
        (1000, 0.01, 0.03, 0.02, False), (2000, 0.05, 0.1, 0.05, True), (2000, 0.05, 0.05, 0.05, True),
    ):  # fmt: skip
        print(n, up, down, margin, groups, "|", trials.sequential_rates(4, runs, n, up, down, margin, groups))
    print("median items to a decision, margin 0.02, 200 trials: rates | mixture, predictable plug-in")
    for up, down in ((0.05, 0.05), (0.1, 0.1), (0.02, 0.02), (0.05, 0.1), (0.01, 0.06)):
        print(up, down, "|", *trials.mixture_and_plug_in(5, 200, 30000, up, down, 0.02))


if __name__ == "__main__":
    main()
