"""Reader and writer of llama.cpp's base file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantvane.errors import DataError, OutputError, TraceError
from quantvane.store.kld_file import KldFile, KldHeader
from quantvane.store.kld_rows import encode_rows
from quantvane.store.kld_writer import KldWriter
from support_llama import chunk_logits, skip_unless_golden_kernels

GOLDEN = [
    ("kld-lm10m-ctx128", "lm10m/lm10m-f16.gguf", KldHeader(128, 4096, 6)),
    ("kld-stories260K-ctx256", "stories260K/stories260K-f16.gguf", KldHeader(256, 512, 12)),
]


def make(chunks=3, n_ctx=8, vocab=11, seed=0):
    """Tokens (C, n_ctx) and logits (C·m, V)."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (chunks, n_ctx), dtype=np.int32)
    rows = chunks * (n_ctx - 1 - n_ctx // 2)
    return tokens, rng.normal(0, 4, (rows, vocab)).astype(np.float32)


def write(path, tokens, logits, **options):
    with KldWriter(path, tokens, 11, **options) as writer:
        writer.append(logits)
    return path


def interrupted(path, tokens, logits, **options):
    with KldWriter(path, tokens, 11, **options) as writer:
        writer.append(logits)
        raise KeyboardInterrupt


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base.kld", *make())


# ---- what is written


@given(
    chunks=st.integers(1, 4),
    n_ctx=st.integers(3, 9),
    vocab=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 16), max_size=4),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_whatever_the_blocks(tmp_path, chunks, n_ctx, vocab, cuts):
    tokens, logits = make(chunks, n_ctx, vocab)
    path = tmp_path / "trip.kld"
    with KldWriter(path, tokens, vocab) as writer:
        for block in np.split(logits, sorted(min(c, len(logits)) for c in cuts)):
            writer.append(block)
    m = n_ctx - 1 - n_ctx // 2
    words = encode_rows(logits)
    layout = b"_logits_" + struct.pack("<3i", n_ctx, vocab, chunks) + tokens.tobytes() + words.tobytes()
    assert path.read_bytes() == layout
    with KldFile.open(path) as opened:
        assert opened.header == KldHeader(n_ctx, vocab, chunks)
        np.testing.assert_array_equal(opened.tokens, tokens)
        for chunk in range(chunks):
            scale, low, codes = opened.rows(chunk)
            mine = words[chunk * m : (chunk + 1) * m]
            np.testing.assert_array_equal(codes, mine[:, 4 : 4 + vocab])
            np.testing.assert_array_equal(np.stack([scale, low], 1), mine.view(np.float32)[:, :2])
            np.testing.assert_array_equal(
                opened.log_probs(chunk), scale[:, None] * codes.astype(np.float32) + low[:, None]
            )
            np.testing.assert_array_equal(opened.targets(chunk), tokens[chunk, n_ctx // 2 + 1 :])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the memory from")
def test_reading_a_file_holds_one_chunk_of_it(tmp_path):
    def mapped():  # kB of files
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("RssFile")).split()[1])

    rng = np.random.default_rng(5)
    n_ctx, vocab, chunks = 64, 8192, 40
    tokens = rng.integers(0, vocab, (chunks, n_ctx)).astype(np.int32)
    rows = rng.normal(size=(n_ctx - 1 - n_ctx // 2, vocab)).astype(np.float32)
    with KldWriter(tmp_path / "base.kld", tokens, vocab) as writer:
        for _ in range(chunks):
            writer.append(rows)
    size = (tmp_path / "base.kld").stat().st_size // 1024
    with KldFile.open(tmp_path / "base.kld") as file:
        first = file.rows(0)[2]
        kept = first.copy()
        before = mapped()
        for chunk in range(chunks):
            assert int(file.rows(chunk)[2].sum(dtype=np.int64)) == int(kept.sum(dtype=np.int64))
        assert mapped() - before < size // 4
        np.testing.assert_array_equal(first, kept)  # a view outlives the memory of its chunk


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to read the maps from")
def test_a_closed_file_is_no_longer_mapped(base):
    opened = KldFile.open(base)
    opened.log_probs(1)
    assert str(base) in Path("/proc/self/maps").read_text()
    opened.close()
    assert str(base) not in Path("/proc/self/maps").read_text()
    with pytest.raises(ValueError, match="closed"):
        opened.log_probs(1)


def test_windows_score_the_second_half_and_carry_bos(base):
    with KldFile.open(base) as opened:
        plain, with_bos = opened.windows(None), opened.windows(5)
        for index, (a, b) in enumerate(zip(plain, with_bos, strict=True)):
            np.testing.assert_array_equal(a.tokens, opened.tokens[index])
            assert b.tokens[0] == 5
            np.testing.assert_array_equal(b.tokens[1:], a.tokens[1:])
            assert np.flatnonzero(b.scored).tolist() == [4, 5, 6]
            np.testing.assert_array_equal(b.targets[b.scored], opened.targets(index))
            assert (a.index, a.corpus, a.document) == (index, 0, 0)


def test_an_interrupted_writer_leaves_the_old_file(base):
    before = base.read_bytes()
    tokens, logits = make(seed=1)
    with pytest.raises(KeyboardInterrupt):
        interrupted(base, tokens, logits[:5])
    assert base.read_bytes() == before
    assert [p.name for p in base.parent.iterdir()] == [base.name]


def test_too_few_and_too_many_rows_are_refused(tmp_path):
    tokens, logits = make()
    path = tmp_path / "base.kld"
    with pytest.raises(DataError, match="incomplete"):
        write(path, tokens, logits[:-1])
    with pytest.raises(DataError, match="at most 9 rows"):
        write(path, tokens, np.concatenate([logits, logits[:1]]))
    assert list(tmp_path.iterdir()) == []


def test_resume_continues_at_the_last_whole_chunk(tmp_path):
    tokens, logits = make(chunks=4)
    whole = write(tmp_path / "whole.kld", tokens, logits).read_bytes()
    path = tmp_path / "base.kld"
    with pytest.raises(KeyboardInterrupt):  # after two chunks of three rows and one row more
        interrupted(path, tokens, logits[:7], resume_key="m")
    assert not path.exists()
    with KldWriter(path, tokens, 11, resume_key="m") as writer:
        assert writer.chunks_done == 2
        writer.append(logits[6:])
    assert path.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.kld", "whole.kld"]


@pytest.mark.parametrize("change", ["key", "tokens"])
def test_resume_never_joins_another_recording(tmp_path, change):
    tokens, logits = make()
    path = tmp_path / "base.kld"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, tokens, logits[:3], resume_key="m")
    other = (tokens + 1) % 11 if change == "tokens" else tokens
    key = "other" if change == "key" else "m"
    with KldWriter(path, other.astype(np.int32), 11, resume_key=key) as writer:
        assert writer.chunks_done == 0
        writer.append(logits)


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    tokens, logits = make()
    path = tmp_path / "base.kld"
    with KldWriter(path, tokens, 11, resume_key="m") as writer:
        with pytest.raises(OutputError, match="another process"), KldWriter(path, tokens, 11, resume_key="m"):
            pass
        writer.append(logits)
    assert path.exists()


def test_a_missing_folder_is_an_output_error(tmp_path):
    tokens, logits = make()
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "absent" / "base.kld", tokens, logits)


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros((2, 8), np.int64),
        np.zeros(8, np.int32),
        np.zeros((0, 8), np.int32),
        np.zeros((2, 2), np.int32),
        np.full((2, 8), 11, np.int32),
        np.full((2, 8), -1, np.int32),
    ],
)
def test_unfit_tokens_are_refused(tmp_path, tokens):
    with pytest.raises(DataError, match="tokens"):
        KldWriter(tmp_path / "base.kld", tokens, 11)


def test_unfit_logits_are_refused_and_nothing_is_made(tmp_path):
    tokens, logits = make()
    with pytest.raises(DataError, match="do not fit"):
        write(tmp_path / "a.kld", tokens, logits[:, :10])
    bad = logits.copy()
    bad[4, 2] = np.nan
    with pytest.raises(DataError, match="log-softmax"):
        write(tmp_path / "b.kld", tokens, bad)
    assert list(tmp_path.iterdir()) == []


# ---- what is refused


def refused(path, **words):
    with pytest.raises(TraceError) as caught:
        KldFile.open(path)
    error = caught.value
    assert error.expected
    assert error.got
    assert error.remedy
    for field, part in words.items():
        assert part in getattr(error, field)


def test_a_missing_file(tmp_path):
    refused(tmp_path / "absent.kld", message="cannot be read", got="No such file")


@pytest.mark.parametrize("size", [0, 7, 8, 19])
def test_a_file_shorter_than_its_head(base, size):
    base.write_bytes(base.read_bytes()[:size])
    refused(base, message="no base file")


def test_another_kind_of_file(base):
    base.write_bytes(b"GGUF" + base.read_bytes()[4:])
    refused(base, message="no base file", got="GGUF")


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_truncated_file(base, cut):
    base.write_bytes(base.read_bytes()[:-cut])
    refused(base, message="truncated", got="whole chunks")


def test_trailing_bytes(base):
    size = base.stat().st_size
    base.write_bytes(base.read_bytes() + b"\0")
    refused(base, message="does not end where", expected=f"{size} bytes", got=f"{size + 1} bytes")


@pytest.mark.parametrize("offset", [8, 12, 16])
@pytest.mark.parametrize("value", [-1, 0, -(2**31), 2**31 - 1, 2**30])
def test_impossible_counts_are_refused_before_memory_is_taken(base, offset, value):
    raw = bytearray(base.read_bytes())
    struct.pack_into("<i", raw, offset, value)
    base.write_bytes(raw)
    refused(base)


@given(counts=st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_counts_are_refused(base, counts):
    raw = bytearray(base.read_bytes())
    if counts == struct.unpack_from("<3i", raw, 8):
        return
    struct.pack_into("<3i", raw, 8, *counts)
    path = base.with_name("other.kld")
    path.write_bytes(raw)
    refused(path)


@pytest.mark.parametrize("token", [-1, 11])
def test_tokens_outside_the_vocabulary(base, token):
    raw = bytearray(base.read_bytes())
    struct.pack_into("<i", raw, 20 + 4 * 5, token)
    base.write_bytes(raw)
    refused(base, message="tokens", got=str(token))


@pytest.mark.parametrize(
    ("word", "value"), [(0, np.nan), (0, -1.0), (0, np.inf), (4, np.nan), (4, -np.inf), (4, 1.0)]
)
def test_rows_that_hold_no_log_probabilities(base, word, value):
    raw = bytearray(base.read_bytes())
    with KldFile.open(base) as opened:
        header = opened.header
    struct.pack_into("<f", raw, header.rows_offset + header.chunk_bytes + header.row_bytes + word, value)
    base.write_bytes(raw)
    with KldFile.open(base) as opened:
        opened.rows(0)
        with pytest.raises(TraceError, match="chunk 1: row 1"):
            opened.rows(1)


def test_chunks_out_of_range_and_closed_files(base):
    with KldFile.open(base) as opened:
        for chunk in (-1, 3):
            with pytest.raises(IndexError):
                opened.rows(chunk)
    with pytest.raises(ValueError, match="closed"):
        opened.rows(0)


# ---- llama.cpp's own files


@pytest.mark.parametrize(
    ("folder", "model", "header"), GOLDEN, ids=lambda x: str(x) if isinstance(x, str) else ""
)
def test_golden_files_are_read(shared, folder, model, header):
    with KldFile.open(shared / "golden" / folder / "base.kld") as opened:
        assert opened.header == header
        for chunk in range(header.n_chunk):
            total = np.exp(opened.log_probs(chunk).astype(np.float64)).sum(axis=1)
            # The clip adds at most V·e⁻¹⁶ of the mode to a row, 16-bit rounding about 1e-4.
            assert (abs(total - 1) < header.n_vocab * np.exp(-16.0) + 2e-4).all()


@pytest.mark.parametrize(
    ("folder", "model", "header"), GOLDEN, ids=lambda x: str(x) if isinstance(x, str) else ""
)
def test_golden_files_are_rewritten_byte_for_byte(shared, tmp_path, folder, model, header):
    skip_unless_golden_kernels()
    golden = shared / "golden" / folder / "base.kld"
    with (
        KldFile.open(golden) as opened,
        KldWriter(tmp_path / "own.kld", opened.tokens, header.n_vocab) as writer,
    ):
        for logits in chunk_logits(shared / "models" / model, opened.tokens):
            writer.append(logits)
    assert (tmp_path / "own.kld").read_bytes() == golden.read_bytes()
