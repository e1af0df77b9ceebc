"""inspect_ai logs: ``.json`` documents and ``.eval`` archives (ZIP; members deflated or zstd).

Which scorer counts is the caller's word where there are several. Epochs of one sample become items ``ID#EPOCH`` in one
cluster. Scores are read as the harness reads them: C, yes, true, 1 are right, I, no, false, 0 wrong; N (no answer) and
an unscored NaN are ``unparsed``; P (partial) and grades are an error. A sample stopped by an error is ``error``, by a
time limit ``timeout``, by another limit or the model's token cap ``truncated``. An unfinished evaluation is refused.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from quantvane.spec import canonical_hash
from quantvane.tasks.bounded import MAX_FILE, binary, damaged, json_object, text_of
from quantvane.tasks.lm_eval import choose
from quantvane.tasks.outcomes import Outcome

__all__ = ["is_log", "read_inspect"]

MAX_MEMBER = 256 << 20
MAX_TOTAL = 16 << 30
MAX_MEMBERS = 1_000_000
_ZSTD = 93
_UNFINISHED = "finish it first: inspect eval-retry LOG"
# settings that change what is generated; the rest is about connections and retries
_GENERATION = (
    "best_of", "frequency_penalty", "logit_bias", "max_tokens", "num_choices", "presence_penalty",
    "reasoning_effort", "reasoning_tokens", "seed", "stop_seqs", "system_message", "temperature", "top_k", "top_p",
)  # fmt: skip


def is_log(document: Mapping[str, Any]) -> bool:
    """Is this JSON document a log with its samples."""
    return isinstance(document.get("eval"), dict) and isinstance(document.get("samples"), list)


def read_inspect(path: Path, scorers: Mapping[str, str]) -> Iterator[Outcome]:
    """Outcomes of one log.

    Args:
        scorers: task → scorer, ``SCORER.KEY`` where its value has several parts; the task "" stands for all others.

    Raises:
        DataError: damaged or oversized log, several scorers and none named, a graded score.
    """
    try:
        if path.suffix == ".eval":
            with zipfile.ZipFile(path) as archive:
                yield from _archive(archive, path, scorers)
            return
        if path.stat().st_size > MAX_FILE:
            raise damaged(
                f"'{path}'", f"at most {MAX_FILE} bytes", "more", "convert it with: inspect log convert"
            )
        log = json_object(path.read_bytes(), f"'{path}'")
    except OSError as problem:
        raise damaged(
            f"'{path}'", "a readable file", problem.strerror or str(problem), "check the path"
        ) from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error, EOFError) as problem:
        raise damaged(f"'{path}'", "a whole .eval archive", str(problem)) from None
    if not is_log(log):
        raise damaged(
            f"'{path}'", "a log with 'eval' and 'samples'", f"fields {', '.join(map(str, log))[:200]}"
        )
    task, settings = _header(log, f"'{path}'")
    samples = log["samples"]
    repeated = any(isinstance(s, dict) and s.get("epoch", 1) != 1 for s in samples)
    for number, sample in enumerate(samples, 1):
        yield _outcome(sample, task, settings, repeated, scorers, f"'{path}' sample {number}")


def _archive(archive: zipfile.ZipFile, path: Path, scorers: Mapping[str, str]) -> Iterator[Outcome]:
    # a member written again is there twice: the last one counts
    members = {info.filename: info for info in archive.infolist()}
    if len(members) > MAX_MEMBERS:
        raise damaged(f"'{path}'", f"at most {MAX_MEMBERS} members", str(len(members)))
    names = [n for n in members if _is_sample(n)]
    if "header.json" not in members:
        raise damaged(
            f"'{path}'", "header.json, which a finished evaluation writes last", "none", _UNFINISHED
        )
    left = MAX_TOTAL
    head = _member(archive, members["header.json"], path, left)
    task, settings = _header(json_object(head, f"'{path}' header.json"), f"'{path}' header.json")
    repeated = any(not _stem(name).endswith("_epoch_1") for name in names)
    for name in names:
        data = _member(archive, members[name], path, left)
        left -= len(data)
        where = f"'{path}' {name}"
        yield _outcome(json_object(data, where), task, settings, repeated, scorers, where)


def _is_sample(name: str) -> bool:
    """``samples/ID_epoch_N.json``, or the shell of a sample kept in parts: ``samples/ID_epoch_N/sample.json``."""
    parts = name.split("/")
    whole = len(parts) == 2 and parts[1].endswith(".json")
    return parts[0] == "samples" and (whole or (len(parts) == 3 and parts[2] == "sample.json"))


def _stem(name: str) -> str:
    return name.removesuffix("/sample.json").removesuffix(".json")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, left: int) -> bytes:
    """Decompress one member, counting what comes out and not what the archive claims."""
    limit = min(MAX_MEMBER, left)
    with _zstd_stream(archive, info) if info.compress_type == _ZSTD else archive.open(info) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise damaged(
            f"'{path}' {info.filename}", f"at most {MAX_MEMBER} bytes a member, {MAX_TOTAL} in all", "more"
        )
    if info.compress_type == _ZSTD and zlib.crc32(data) != info.CRC:  # zipfile checks its own
        raise damaged(f"'{path}' {info.filename}", "a member that matches its checksum", "another checksum")
    return data


def _zstd_stream(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """zipfile of this Python knows no zstd: the member's raw bytes, decompressed as they are read."""
    import pyarrow as pa

    if info.flag_bits & 1 or info.compress_size > MAX_MEMBER or archive.fp is None:
        raise zipfile.BadZipFile(f"{info.filename} is encrypted or too large")
    archive.fp.seek(info.header_offset)
    head = struct.unpack("<4s22x2H", archive.fp.read(30))
    if head[0] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{info.filename} has no local header")
    archive.fp.seek(info.header_offset + 30 + head[1] + head[2])
    raw = archive.fp.read(info.compress_size)
    stream: IO[bytes] = io.BufferedReader(pa.CompressedInputStream(pa.BufferReader(raw), "zstd"), 1 << 20)
    return stream


def _header(log: dict[str, Any], where: str) -> tuple[str, str]:
    """Task name and generation settings."""
    spec = log.get("eval")
    if log.get("status", "success") != "success":  # what is missing is not missing at random
        raise damaged(where, "a finished evaluation", f"status {str(log['status'])[:60]}", _UNFINISHED)
    if not isinstance(spec, dict) or not text_of(spec, "task", where):
        raise damaged(where, "'eval' with a 'task'", "none")
    plan = log.get("plan")
    settings: dict[str, Any] = {}
    for config in (plan.get("config") if isinstance(plan, dict) else None, spec.get("model_generate_config")):
        if isinstance(config, dict):
            settings |= {k: config[k] for k in _GENERATION if config.get(k) is not None}
    return text_of(spec, "task", where).rsplit("/", 1)[-1], json.dumps(
        settings, sort_keys=True, ensure_ascii=False
    )


def _outcome(
    sample: Any, task: str, settings: str, repeated: bool, scorers: Mapping[str, str], where: str
) -> Outcome:
    if not isinstance(sample, dict):
        raise damaged(where, "a sample", type(sample).__name__)
    item = text_of(sample, "id", where)
    epoch = text_of(sample, "epoch", where) or "1"
    if not item:
        raise damaged(where, "a sample with an 'id'", "none")
    state = _state(sample)
    value, answer = None, None
    scores = sample.get("scores")
    if isinstance(scores, dict) and scores:
        value, answer = _score(scores, task, scorers, where)
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "N":
        if value is None and state is None:
            raise damaged(
                where, "a score, an error or a limit", "none of them", "score the log: inspect score LOG"
            )
        state, correct = state or "unparsed", None if value is None else False
    else:
        correct = binary(
            _WORDS.get(value.lower(), value) if isinstance(value, str) else value, "score", where
        )
    return Outcome(
        task=task,
        item=f"{item}#{epoch}" if repeated else item,
        correct=correct,
        answer=answer if isinstance(answer, str) else None,
        state=state,
        cluster=item if repeated else None,
        prompt=_prompt(sample),
        settings=settings,
        where=where,
    )


_WORDS = {
    "c": True,
    "i": False,
    "yes": True,
    "no": False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
}


def _score(scores: dict[str, Any], task: str, scorers: Mapping[str, str], where: str) -> tuple[Any, Any]:
    """(value, answer) of the scorer that counts."""
    parts: dict[str, tuple[Any, Any]] = {}
    for name, score in scores.items():
        if not isinstance(score, dict) or "value" not in score:
            raise damaged(where, f"a score with a 'value' under '{name}'", str(score)[:60])
        value, answer = score["value"], score.get("answer")
        if isinstance(value, dict):
            parts |= {f"{name}.{key}": (part, answer) for key, part in value.items()}
        else:
            parts[name] = value, answer
    return parts[choose(list(parts), scorers, task, "metric", where)]


def _state(sample: dict[str, Any]) -> str | None:
    if sample.get("error") or sample.get("invalidation"):
        return "error"
    limit = sample.get("limit")
    if isinstance(limit, dict):
        return "timeout" if limit.get("type") in ("time", "working") else "truncated"
    output = sample.get("output")
    choices = output.get("choices") if isinstance(output, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    stopped = first.get("stop_reason") if isinstance(first, dict) else None
    return "truncated" if stopped in ("max_tokens", "model_length") else None


def _prompt(sample: dict[str, Any]) -> str:
    """Hash of what the model was first given: messages before its first answer, or the sample's input."""
    given: list[list[Any]] = []
    messages = sample.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict) or message.get("role") == "assistant":
            break
        given.append(
            [message.get("role"), message.get("content")]
        )  # not its id, which differs from run to run
    if not given:
        given = [["user", sample.get("input")], ["choices", sample.get("choices")]]
    try:
        return canonical_hash(given)[:16]
    except (ValueError, RecursionError):
        return ""
