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
                left = f" ({one['left_out']} left out)" if one["left_out"] else ""
                mark = " ✓" if good(one) else ""
                cells.append(f"{one['predicted']:.3g}, {one['coverage']['value']:.2f}, {words}{mark}{left}")
            print(f"| {label} | {space} | {found['terms']['measured']:.3g} | {cells[0]} | {cells[1]} |")


def good(one: dict[str, Any]) -> bool:
    """The rule of `quantvane.fisher.prediction.holds`."""
    bias = one["bias_log"]
    within = bias is not None and abs(bias) <= BIAS_CEILING and one["coverage"]["value"] >= COVERAGE_FLOOR
    return bool(within and not one["left_out"])


def down_to(part: dict[str, Any], space: str, how: str) -> str:
    """Smallest width at which the prediction holds, and at all larger ones; with its skill there and at 4 bits."""
    last, four = "none", float("nan")
    for bits in range(8, 1, -1):
        found = part["candidates"][f"rtn:{bits}"]["prediction"].get(space)
        if found is None:
            return "—"
        if not good(found[how]):
            break
        last = str(bits)
    four = part["candidates"]["rtn:4"]["prediction"][space][how]["skill"]
    return f"{last} (skill at 4: {four:+.2f})"


def summary(study: dict[str, Any]) -> None:
    models = study["models"]
    print("## Verdicts on Theorem 4.3 over all candidates: contradicted / not contradicted / supported; Weyl's bound\n")
    for space in next(iter(models.values()))["options"]["spaces"]:
        found = [c["verdicts"][space] for part in models.values() for c in part["candidates"].values()]
        counts = [
            sum(f["theorem"]["outcome"] == o for f in found) for o in ("contradicted", "not contradicted", "supported")
        ]
        print(f"{space}: {counts} of {len(found)}; Weyl holds in {sum(bool(f['weyl_holds']) for f in found)}")
    print("\n## Windows in which σ exceeds 244\n")
    for name, part in models.items():
        for label, entry in part["candidates"].items():
            for space in SPACES:
                if space in entry["rows"][0] or space in entry:
                    s = sigmas(entry, space)
                    if (s > 244).any():
                        print(f"{name} {label} {space}: {int((s > 244).sum())} of {len(s)}, median {np.median(s):.3g}")
    print("\n## Prediction of round-to-nearest holds down to how many bits\n")
    print("| model | space | two terms | noise drawn |\n|---|---|---|---|")
    for name, part in models.items():
        for space in part["options"]["spaces"]:
            print(f"| {name} | {space} | {down_to(part, space, 'terms')} | {down_to(part, space, 'draws')} |")


def main() -> None:
    place = Path(__file__).parent / "results" / "fisher_study.json"
    study = json.loads(place.read_text(encoding="utf-8"))
    summary(study)
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
