"""The finding in words; ties; the table of the terminal."""

import io
import math

import pytest
import sample
from rich.console import Console

from quantvane.report import table
from quantvane.report.readings import Reading, read_summary
from quantvane.report.words import floor_words, headline, ties, within_floor


def test_ends_means_and_ties_are_said() -> None:
    text = " ".join(headline(read_summary(sample.seven())))
    assert "Closest to F16 is Q8_0: mean KLD 0.001653 [0.001569, 0.001737]" in text
    assert "Furthest is Q2_K" in text
    assert "Q4_K_M and IQ4_NL are tied." in text


def test_only_candidates_all_tied_with_each_other_form_a_group() -> None:
    summary = sample.seven()
    names = [item["name"] for item in summary["candidates"]]
    links = {0: [1, 2], 1: [0, 2], 2: [0, 1, 3], 3: [2]}
    for at, item in enumerate(summary["candidates"]):
        item["tied_with"] = [names[other] for other in links.get(at, [])]
    assert ties(read_summary(summary)) == ["Q8_0, Q6_K and Q5_K_M are tied.", "Q5_K_M and Q4_K_M are tied."]


def test_a_tie_stored_on_one_side_only_is_said_once() -> None:
    summary = sample.seven()
    summary["candidates"][3]["tied_with"] = []
    assert ties(read_summary(summary)) == ["Q4_K_M and IQ4_NL are tied."]


def test_no_tie_is_said_too() -> None:
    summary = sample.seven()
    for item in summary["candidates"]:
        item["tied_with"] = []
    assert "No two candidates are tied." in headline(read_summary(summary))


def test_candidates_within_the_noise_floor_are_named() -> None:
    summary = sample.seven()
    summary["noise_floor"]["kld_mean"] = 0.0016
    text = " ".join(headline(read_summary(summary)))
    assert "Q8_0 cannot be told from the reference's own noise." in text
    assert within_floor(read_summary(sample.one()), Reading(1e-9)) is False
    assert within_floor(read_summary(summary), Reading(math.nan, reason="x")) is False


def test_a_missing_mean_is_said_with_its_reason() -> None:
    assert "Q5_K_M: no mean KLD (the engine gave NaN logits)." in headline(read_summary(sample.odd()))


def test_floor_words_tell_zero_from_unknown() -> None:
    assert floor_words(read_summary(sample.odd())).startswith("Noise floor: exactly 0")
    assert floor_words(read_summary(sample.one())).startswith("Noise floor unknown")


@pytest.mark.parametrize("make", [sample.one, sample.seven, sample.many, sample.odd])
def test_the_terminal_table_fits_a_hundred_columns(make) -> None:  # type: ignore[no-untyped-def]
    out = io.StringIO()
    Console(file=out, width=100).print(table(make()))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in out.getvalue()
    head = next(line for line in lines if "candidate" in line)
    assert head.rstrip().endswith("rank")


def test_the_terminal_table_marks_ties_and_reasons() -> None:
    out = io.StringIO()
    Console(file=out, width=140).print(table(sample.seven()))
    text = out.getvalue()
    assert text.count("4=") == 2
    assert "Q4_K_M and IQ4_NL are tied." in text
    out = io.StringIO()
    Console(file=out, width=140).print(table(sample.odd()))
    assert "the engine gave NaN logits" in out.getvalue()
