"""Our table against what llama.cpp's own tool printed for the same model, quants, text and protocol."""

from __future__ import annotations

import re

import pytest

import quantvane as qv

KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "Q3_K_M", "Q2_K")
FIELDS = {
    "Mean    KLD": "mean", "Maximum KLD": "max", "99.9%   KLD": "p999", "99.0%   KLD": "p99", "95.0%   KLD": "p95",
    "90.0%   KLD": "p90", "Median  KLD": "median",
}  # fmt: skip


def printed(text: str, label: str) -> float:
    return float(re.search(re.escape(label) + r"\s*:\s*(-?[\d.]+)", text).group(1))


@pytest.fixture(scope="module")
def table(shared, tmp_path_factory):
    result = qv.compare(
        str(shared / "models/lm10m/lm10m-f16.gguf"),
        text=str(shared / "text/books-a.txt"),
        chunks=80,
        quantize=KINDS,
        settings={"cache_type_k": "f16", "cache_type_v": "f16"},
        out=tmp_path_factory.mktemp("golden") / "r",
    )
    return {c["name"].removeprefix("lm10m-"): c for c in result.summary["candidates"]}, result


@pytest.mark.parametrize("kind", KINDS)
def test_the_peers_numbers(shared, table, kind):
    text = (shared / f"golden/lm10m-books-a-ctx512/{kind}.txt").read_text()
    ours = table[0][kind]
    assert ours["tokens"] == 20400
    for label, key in FIELDS.items():
        theirs = printed(text, label)
        # A maximum is one token: the peer's 16-bit base moves it by more than a mean.
        assert ours["kld"][key]["value"] == pytest.approx(theirs, rel=0.01, abs=2e-5), (kind, key)
    assert ours["top1_agreement"]["value"] * 100 == pytest.approx(printed(text, "Same top p"), abs=0.1)
    assert ours["ppl"]["value"] == pytest.approx(printed(text, "Mean PPL(Q)"), rel=1e-3)
    assert ours["delta_p_rms"]["value"] * 100 == pytest.approx(printed(text, "RMS Δp"), rel=0.01)


def test_the_reference_perplexity_is_not_clipped(shared, table):
    """The peer clips the base's NLL at 16 nats: its KL pass prints 38.00 where its plain pass says 47.33."""
    plain = (shared / "golden/lm10m-books-a-ctx512/base.txt").read_text()
    theirs = float(re.search(r"PPL = ([\d.]+)", plain).group(1))
    assert table[1].summary["reference"]["ppl"]["value"] == pytest.approx(theirs, rel=1e-4)
    clipped = (shared / "golden/lm10m-books-a-ctx512/Q4_K_M.txt").read_text()
    assert printed(clipped, "Mean ln(PPL(Q)/PPL(base))") == pytest.approx(0.293, abs=1e-3)
    assert table[0]["Q4_K_M"]["ln_ppl_ratio"]["value"] == pytest.approx(0.074, abs=1e-3)
