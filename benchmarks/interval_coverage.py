"""Measured coverage of the 95% intervals, as the Markdown table of docs/intervals.md.

python benchmarks/interval_coverage.py [DATASETS] [CLUSTERS …]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "statistical"))

from clustered_klds import coverage, false_separations


def main(datasets: int, groups: list[int]) -> None:
    start = time.perf_counter()
    measured = [coverage(g, datasets) for g in groups]
    print("| quantity | " + " | ".join(f"G = {g}" for g in groups) + " |")
    print("|---|" + "---|" * len(groups))
    for name in measured[0]:
        cells = [
            f"{100 * m[name][0]:.1f} ({100 * m[name][1]:.1f} / {100 * m[name][2]:.1f})" for m in measured
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    wrong = [f"{100 * false_separations(g, datasets):.1f}" for g in groups]
    print("| false separation, 3 equal candidates | " + " | ".join(wrong) + " |")
    print(f"{datasets} datasets each, {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    numbers = [int(x) for x in sys.argv[1:]] or [1000]
    main(numbers[0], numbers[1:] or [20, 80, 200])
