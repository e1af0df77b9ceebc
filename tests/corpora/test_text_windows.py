"""Windows: the peer's protocol and the sliding one, on byte tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantvane.corpora.text import Corpus, WindowRule, peer_windows, read_corpus, renumber, sliding_windows
from quantvane.engines.fake import open_fake
from quantvane.errors import CorpusError
from quantvane.spec import CorpusId

ENGINE = open_fake("f", {})
BOS = ENGINE.vocabulary.bos


def corpus(*documents: str) -> Corpus:
    return Corpus(CorpusId("t", "0"), documents, "".join(documents))


def test_the_peers_rule_by_hand():
    text = "abcdefghijklmnopqrstuvwxyz"  # BOS + 26 bytes = 27 tokens: three windows of 8
    windows = peer_windows(ENGINE, corpus(text + "\n"), WindowRule(8, 8, None), 3)
    assert [w.tokens[0] for w in windows] == [BOS, BOS, BOS]
    assert bytes(windows[1].tokens[1:].astype(np.uint8)) == b"ijklmno"
    assert np.flatnonzero(windows[1].scored).tolist() == [4, 5, 6]
    assert bytes(windows[1].targets[windows[1].scored].astype(np.uint8)) == b"mno"
    assert {w.corpus for w in windows} == {3}
    assert len(peer_windows(ENGINE, corpus(text), WindowRule(8, 8, 2), 0)) == 2


@given(st.integers(2, 400), st.integers(4, 40), st.data())
def test_sliding_scores_every_target_once_with_enough_before_it(length, context, data):
    stride = data.draw(st.integers(1, context // 2))
    text = "".join(chr(33 + i % 90) for i in range(length))
    windows = sliding_windows(ENGINE, corpus(text), WindowRule(context, stride, None), 0)
    scored = np.concatenate([w.targets[w.scored] for w in windows])
    assert bytes(scored.astype(np.uint8)) == text.encode()
    for window in windows:
        assert len(window.tokens) <= context
        assert len(window.tokens) == len(window.targets) == len(window.scored)
        np.testing.assert_array_equal(window.tokens[1:], window.targets[:-1])
    for window in windows[1:]:
        assert np.flatnonzero(window.scored)[0] >= min(context - stride, len(window.tokens) - stride)


def test_documents_never_share_a_window(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({"text": c * 30}, ensure_ascii=False) for c in "ab\u2028"), encoding="utf-8")
    read = read_corpus(str(path))
    assert len(read.documents) == 3
    for cut in (peer_windows, sliding_windows):
        windows = renumber([cut(ENGINE, read, WindowRule(10, 5, None), 0)])
        assert [w.index for w in windows] == list(range(len(windows)))
        assert {w.document for w in windows} == {0, 1, 2}
        for window in windows:
            assert len(set(window.tokens.tolist()) - {BOS}) <= (1 if window.document < 2 else 3)


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\n", "empty"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2"),
        ("a.jsonl", b'{"text": "a"}\n{nope\n', "line 2"),
    ],
)
def test_files_that_are_no_corpus(tmp_path, name, data, word):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=word):
        read_corpus(str(tmp_path / name))


def test_line_ends_are_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\nb")
    assert read_corpus(str(tmp_path / "a.txt")).raw == "a\r\nb"


def test_too_short_says_how_long_it_must_be():
    with pytest.raises(CorpusError) as caught:
        peer_windows(ENGINE, corpus("short"), WindowRule(64, 64, None), 0)
    assert "64 tokens" in caught.value.expected
    assert "6 tokens" in caught.value.got
