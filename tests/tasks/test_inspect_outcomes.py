"""Logs in the shape inspect_ai 0.3 writes them: JSON documents, and archives with deflated or zstd members."""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib

import pyarrow as pa
import pytest

from quantvane.errors import DataError
from quantvane.tasks import ReadOptions, read_outcomes


def sample(number, value, *, epoch=1, scorer="match", **more):
    return {
        "id": number, "epoch": epoch, "input": f"q{number}", "target": "x",
        "messages": [
            {"id": f"random-{epoch}", "role": "user", "content": f"q{number}"},
            {"id": "another", "role": "assistant", "content": "x"},
        ],
        "output": {"model": "m", "choices": [{"stop_reason": "stop"}]},
        "scores": {scorer: {"value": value, "answer": "x"}},
    } | more  # fmt: skip


def log(samples, **more):
    head = {"task": "room/tiny", "model": "m", "model_generate_config": {"temperature": 0.0, "max_connections": 3}}
    plan = {"config": {"max_tokens": 5}}
    return {"version": 2, "status": "success", "eval": head, "plan": plan, "samples": samples} | more


def write_json(path, document):
    path.write_text(json.dumps(document))
    return path


def write_eval(path, document, method=zipfile.ZIP_DEFLATED):
    header = {k: v for k, v in document.items() if k != "samples"}
    members = {f"samples/{s['id']}_epoch_{s['epoch']}.json": s for s in document["samples"]} | {"header.json": header}
    if method == 93:
        path.write_bytes(_zstd_archive({name: json.dumps(m).encode() for name, m in members.items()}))
        return path
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(name, json.dumps(member))
    return path


def _zstd_archive(members):
    """A ZIP with method 93, written by hand: this Python's zipfile cannot."""
    body, directory = b"", b""
    for name, data in members.items():
        packed = pa.compress(data, codec="zstd", asbytes=True)
        common = struct.pack("<HHHHHIIIHH", 63, 0, 93, 0, 33, zlib.crc32(data), len(packed), len(data), len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<H", 63) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\x03\x04" + common + name.encode() + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


ROWS = [
    sample(1, "C"), sample(2, "I"), sample(3, "N"), sample(4, math.nan), sample(5, 1), sample(6, False),
    sample(7, "C", output={"choices": [{"stop_reason": "max_tokens"}]}),
    sample(8, "I", limit={"type": "time", "limit": 3}),
    sample(9, None, scores=None, error={"message": "boom"}),
]  # fmt: skip


@pytest.mark.parametrize("form", ["json", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, 93])
def test_every_form_reads_alike(tmp_path, form):
    if form == "json":
        path = write_json(tmp_path / "a.json", log(ROWS))
    else:
        path = write_eval(tmp_path / "a.eval", log(ROWS), form)
    found = read_outcomes(path).outcomes
    assert [o.item for o in found] == list("123456789")
    assert [o.correct for o in found] == [True, False, False, False, True, False, True, False, None]
    states = [None, None, "unparsed", "unparsed", None, None, "truncated", "timeout", "error"]
    assert [o.state for o in found] == states
    assert {o.task for o in found} == {"tiny"}
    assert {o.cluster for o in found} == {None}
    assert json.loads(found[0].settings) == {"max_tokens": 5, "temperature": 0.0}
    assert len({o.prompt for o in found}) == 9


def test_epochs_are_one_cluster(tmp_path):
    rows = [sample(1, "C"), sample(1, "I", epoch=2), sample(2, "C"), sample(2, "C", epoch=2)]
    for path in (write_json(tmp_path / "a.json", log(rows)), write_eval(tmp_path / "a.eval", log(rows))):
        found = read_outcomes(path).outcomes
        assert [o.item for o in found] == ["1#1", "1#2", "2#1", "2#2"]
        assert [o.cluster for o in found] == ["1", "1", "2", "2"]
        assert found[0].prompt == found[1].prompt


def test_several_scorers_have_to_be_named(tmp_path):
    scores = {"match": {"value": "I"}, "judge": {"value": {"tone": 1, "fact": 0}}}
    path = write_json(tmp_path / "a.json", log([sample(1, "C", scores=scores)]))
    with pytest.raises(DataError) as problem:
        read_outcomes(path)
    assert problem.value.got == "match, judge.tone, judge.fact"
    assert read_outcomes(path, options=ReadOptions(metrics={"tiny": "judge.tone"})).outcomes[0].correct is True


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (log([sample(1, "P")]), "P"),
        (log([sample(1, 0.4)]), "0.4"),
        (log([sample(1, None, scores={})]), "score"),
        (log([sample(None, "C")]), "id"),
        (log(["x"]), "sample 1"),
        (log([sample(1, "C", scores={"match": 3})]), "value"),
        (log([sample(1, "C")], status="cancelled"), "cancelled"),
        (log([sample(1, "C")], eval={}), "task"),
        ({"version": 2}, "samples"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, document, said):
    with pytest.raises(DataError) as problem:
        read_outcomes(write_json(tmp_path / "a.json", document))
    assert said in str(problem.value)


def test_a_member_written_again_counts_once(tmp_path):
    path = write_eval(tmp_path / "a.eval", log([sample(1, "I")]))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("samples/1_epoch_1.json", json.dumps(sample(1, "C")))
    [found] = read_outcomes(path).outcomes
    assert found.correct is True


def test_a_bomb_is_stopped_by_what_comes_out(tmp_path, monkeypatch):
    monkeypatch.setattr("quantvane.tasks.inspect_logs.MAX_MEMBER", 4000)
    rows = [sample(1, "C", note="0" * 100_000)]
    for method in (zipfile.ZIP_DEFLATED, 93):
        with pytest.raises(DataError, match="samples/1_epoch_1"):
            read_outcomes(write_eval(tmp_path / "a.eval", log(rows), method))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, 93])
def test_damaged_archives(tmp_path, method):
    whole = write_eval(tmp_path / "a.eval", log([sample(1, "C")]), method).read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:60] + bytes(b ^ 0x5A for b in whole[60:90]) + whole[90:]):
        (tmp_path / "b.eval").write_bytes(broken)
        with pytest.raises(DataError):
            read_outcomes(tmp_path / "b.eval")


def test_a_zstd_member_that_was_changed_fails_its_checksum(tmp_path):
    path = write_eval(tmp_path / "a.eval", log([sample(1, "C")]), 93)
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02") + 16  # the checksum in the first directory entry
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(DataError, match="checksum"):
        read_outcomes(path)


def test_an_unfinished_archive(tmp_path):
    path = tmp_path / "a.eval"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("samples/1_epoch_1.json", json.dumps(sample(1, "C")))
    with pytest.raises(DataError, match=r"header\.json") as problem:
        read_outcomes(path)
    assert "eval-retry" in problem.value.remedy
