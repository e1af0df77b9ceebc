"""A measurement as a plan of pure jobs: frozen, serialisable, mergeable, whoever executes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantvane.engines.registry import RECORDED
from quantvane.errors import SpecError
from quantvane.spec import PROTOCOLS, ModelSpec, canonical_hash

__all__ = ["CompareSpec", "Job", "candidate_names", "check_fields", "journal_path", "plan_jobs"]


def check_fields(checks: Sequence[tuple[bool, str, str, Any]], command: str) -> None:
    """Refuse the first field that is not right.

    Args:
        checks: (right, message, expected, got) of every field.
        command: the command whose help the error points to.

    Raises:
        SpecError: for the first check that failed.
    """
    for right, message, expected, got in checks:
        if not right:
            raise SpecError(message, expected=expected, got=str(got), remedy=f"see quantvane {command} --help")


@dataclass(frozen=True, slots=True)
class CompareSpec:
    """Everything that decides the numbers of a ``compare``.

    Attributes:
        reference, candidates: models under their settings. names: unique names of the candidates.
        texts: paths of the corpora. protocol, context, stride, chunks: see `quantvane.spec.Protocol`.
        template: path of a chat template that replaces the model's own, or None.
        backend: kernel that computes displacement. top_k: k of ``topk_overlap``.
        floor_windows: windows of each run spent on the standing noise floor; 0 for none.
        noise: path of a ``noise`` run whose floor is used instead, or None.
        seed: seeds the resampling. resamples: number of bootstrap resamples.
        peer_statistics: also compute what llama.cpp's ``--kl-divergence`` prints; needs its base file.
    """

    reference: ModelSpec
    candidates: tuple[ModelSpec, ...]
    names: tuple[str, ...]
    texts: tuple[str, ...]
    protocol: str = "llama-perplexity"
    context: int = 512
    stride: int = 256
    chunks: int | None = None
    template: str | None = None
    backend: str = "numba"
    top_k: int = 10
    floor_windows: int = 4
    noise: str | None = None
    seed: int = 0
    resamples: int = 2000
    peer_statistics: bool = False

    def __post_init__(self) -> None:
        checks: Sequence[tuple[bool, str, str, Any]] = (
            (bool(self.candidates), "there is nothing to compare", "at least one candidate", 0),
            (
                bool(self.texts) or self.reference.engine in RECORDED,
                "there is no text to measure on",
                "at least one --text FILE",
                0,
            ),
            (self.protocol in PROTOCOLS, "unknown protocol", "one of " + ", ".join(PROTOCOLS), self.protocol),
            (8 <= self.context <= 1 << 20, "context out of range", "8 to 1048576 tokens", self.context),
            (
                0 < self.stride <= self.context // 2,
                "stride out of range",
                f"1 to {self.context // 2}: half a window of context at least",
                self.stride,
            ),
            (self.chunks is None or self.chunks > 0, "chunks out of range", "1 or more", self.chunks),
            (1 <= self.top_k <= 1000, "top-k out of range", "1 to 1000", self.top_k),
            (self.floor_windows >= 0, "noise windows out of range", "0 or more", self.floor_windows),
            (self.resamples >= 100, "too few resamples", "100 or more", self.resamples),
            (
                not self.peer_statistics or self.reference.engine == "kld",
                "the peer's statistics need the peer's base file",
                "a base file of llama.cpp as REF with --peer-statistics",
                self.reference.text,
            ),
        )
        check_fields(checks, "compare")

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["reference"] = self.reference.text
        data["candidates"] = [c.text for c in self.candidates]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CompareSpec:
        values = dict(data)
        values["reference"] = ModelSpec.parse(data["reference"])
        values["candidates"] = tuple(ModelSpec.parse(c) for c in data["candidates"])
        values["names"], values["texts"] = tuple(data["names"]), tuple(data["texts"])
        return cls(**values)

    @property
    def hash(self) -> str:
        return canonical_hash(self.to_dict())


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of a plan: some candidates on a share of the windows. Jobs write only their own journal.

    Attributes:
        id: names the journal. candidates: indices into the spec's candidates; empty for the noise floor, where
            the reference itself under `floor_variation` is the candidate.
        shard: (i, n): the i-th of n contiguous shares of the windows.
    """

    id: str
    candidates: tuple[int, ...]
    shard: tuple[int, int] = (0, 1)

    @property
    def is_floor(self) -> bool:
        return not self.candidates

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        return cls(data["id"], tuple(data["candidates"]), (data["shard"][0], data["shard"][1]))


def candidate_names(reference: ModelSpec, candidates: Sequence[ModelSpec]) -> tuple[str, ...]:
    """Unique names: the file's stem, with the settings where stems repeat, numbered where that repeats too."""
    stems = [c.stem for c in candidates]
    taken = [*stems, reference.stem]
    names = [c.name if taken.count(c.stem) > 1 else c.stem for c in candidates]
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return tuple(out)


def _size(spec: ModelSpec) -> int:
    path = Path(spec.path)
    if spec.engine == "trace":
        return sum(2 * f.stat().st_size for f in path.glob("head.npy"))  # float32 in memory
    if path.is_dir():
        return sum(f.stat().st_size for f in path.glob("*.safetensors"))
    return path.stat().st_size if path.is_file() else 0


def plan_jobs(spec: CompareSpec, memory: int) -> list[Job]:
    """Split the candidates into groups that fit in memory beside the reference; then the noise floor.

    Every group is one pass over the corpus in lockstep: the reference and the group's candidates read the same
    tokens together, and nothing but statistics is kept. The reference is read once a group.

    Args:
        memory: bytes that may be used. A quarter is left for buffers; a group has at least one candidate.
    """
    room = memory * 3 // 4 - _size(spec.reference)
    groups: list[list[int]] = []
    held = 0
    for index, candidate in enumerate(spec.candidates):
        size = _size(candidate)
        if not groups or held + size > room:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += size
    jobs = [Job(f"group{number}", tuple(group)) for number, group in enumerate(groups)]
    own_floor = spec.reference.engine in RECORDED or spec.noise is not None
    if spec.floor_windows and not own_floor:
        jobs.append(Job("floor", ()))
    return jobs


def journal_path(out: Path, job: Job) -> Path:
    """Where a job keeps its finished units."""
    return out / "journal" / f"{job.id}-{job.shard[0]}of{job.shard[1]}.journal"
