"""Tables of docs/fisher-study.md from results/fisher_study.json, as Markdown: python benchmarks/fisher_tables.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fisher_charts import ORDER, sigmas

from quantvane.fisher.prediction import BIAS_CEILING, COVERAGE_FLOOR

SPACES = ("logit", "hidden", "head", "params-token", "gauss_newton")


def sigma_table(part: dict[str, Any]) -> None:
    print("| weights | ‖δ‖/‖θ‖ | " + " | ".join(SPACES) + " |\n|---|---|" + "---|" * len(SPACES))
    for label in ORDER:
        entry = part["candidates"][label]
        cells = []
        for space in SPACES:
            if space not in entry["rows"][0] and space not in entry:
                cells.append("")
                continue
            s = sigmas(entry, space)
            cells.append(f"{np.median(s):.3g} ({np.mean(s < 1):.2f}), {s.max():.3g}")
        print(f"| {label} | {entry['relative_noise']:.4f} | " + " | ".join(cells) + " |")


def terms_table(part: dict[str, Any]) -> None:
    """Sign and size of the terms: in how many windows does the first-order term's sign predict σ − 1?"""
    print("| weights | space | sign of λ' = sign of σ−1 | two terms: median error of σ | F' ⪰ 0 | ½F'' ⪰ 0 | verdict |")
    print("|---|---|---|---|---|---|---|")
    for label in ("rtn:8", "rtn:6", "rtn:4", "rtn:3", "rtn:2", "Q4_K_M", "Q2_K"):
        for space in part["options"]["spaces"]:
            entry = part["candidates"][label]
            rows = [w[space] for w in entry["rows"] if w[space]["curvature"] is not None]
            same = sum((r["slope"] > 0) == (r["moved"] > r["value"]) for r in rows)
            gaps = [abs(r["value"] + r["slope"] + r["curvature"] / 2 - r["moved"]) / r["value"] for r in rows]
            psd = [
                sum(r[f] >= -1e-5 * r["value"] for r in rows if r[f] is not None)
                for f in ("lowest_first", "lowest_second")
            ]
            found = entry["verdicts"][space]
            print(
                f"| {label} | {space} | {same}/{len(rows)} | {np.median(gaps):.2g} | {psd[0]} | {psd[1]} | "
                f"{found['theorem']['outcome']}; Weyl {found['weyl_holds']} |"
            )


def prediction_table(part: dict[str, Any]) -> None:
    print("| weights | space | measured σ | terms: σ, cover, ρ | draws: σ, cover, ρ |\n|---|---|---|---|---|")
    for label, entry in part["candidates"].items():
        for space, found in entry.get("prediction", {}).items():
            cells = []
            for how in ("terms", "draws"):
                one = found[how]
                rank = one["rank"]
                words = "—" if rank["value"] is None else f"{rank['value']:.2f}"
                if rank["ci"]:
                    words += f" [{rank['ci'][0]:.2f}, {rank['ci'][1]:.2f}]"
                bias = one["bias_log"]
                good = one["coverage"]["value"] >= COVERAGE_FLOOR and bias is not None and abs(bias) <= BIAS_CEILING
                cells.append(f"{one['predicted']:.3g}, {one['coverage']['value']:.2f}, {words}{' ✓' if good else ''}")
            print(f"| {label} | {space} | {found['terms']['measured']:.3g} | {cells[0]} | {cells[1]} |")


def main() -> None:
    place = Path(__file__).parent / "results" / "fisher_study.json"
    study = json.loads(place.read_text(encoding="utf-8"))
    for model, part in study["models"].items():
        print(f"\n## {model}: σ median (share of windows < 1), largest\n")
        sigma_table(part)
        print(f"\n## {model}: terms\n")
        terms_table(part)
        print(f"\n## {model}: predictions\n")
        prediction_table(part)
        for space in ("logit", "hidden"):
            print("\n" + part["candidates"]["rtn:4"]["verdicts"][space]["proposition"]["sentence"])
        for label in ("rtn:4", "Q4_K_M", "rtn:2"):
            for space in part["options"]["spaces"]:
                print(f"\n{label}: " + part["candidates"][label]["verdicts"][space]["theorem"]["sentence"])


if __name__ == "__main__":
    main()
