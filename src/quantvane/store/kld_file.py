"""Read llama.cpp's ``--kl-divergence-base`` file (for the rows' encoding see `kld_rows`).

Little-endian: ``"_logits_"`` | int32 n_ctx | int32 n_vocab | int32 n_chunk | int32 tokens[n_chunk·n_ctx] |
then for each chunk m = n_ctx − 1 − ⌊n_ctx/2⌋ rows of nv 16-bit words. Row i of a chunk belongs to position
⌊n_ctx/2⌋ + i and predicts the next token. The tokens are the text's own; a model that adds BOS is fed BOS in
place of every chunk's first token.

The file's numbers are checked against its size before anything is allocated for them.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from quantvane.errors import TraceError
from quantvane.store.kld_rows import HEAD_WORDS, decode_rows, row_words
from quantvane.types import Window

__all__ = ["KldFile", "KldHeader", "kld_windows"]

_MAGIC = b"_logits_"
_HEAD = struct.Struct("<8s3i")
_RECORD_AGAIN = "record the reference again, or copy the file again from where it was made"


@dataclass(frozen=True, slots=True)
class KldHeader:
    """The three counts that fix the file's layout.

    Attributes:
        n_ctx: tokens of a chunk, at least 3. n_vocab: vocabulary size V. n_chunk: number of chunks.
    """

    n_ctx: int
    n_vocab: int
    n_chunk: int

    @property
    def first(self) -> int:
        """The first scored position of a chunk, ⌊n_ctx/2⌋."""
        return self.n_ctx // 2

    @property
    def rows_per_chunk(self) -> int:
        """Scored positions of a chunk, m = n_ctx − 1 − ⌊n_ctx/2⌋."""
        return self.n_ctx - 1 - self.first

    @property
    def row_bytes(self) -> int:
        return 2 * row_words(self.n_vocab)

    @property
    def chunk_bytes(self) -> int:
        return self.rows_per_chunk * self.row_bytes

    @property
    def rows_offset(self) -> int:
        """Bytes before the first row."""
        return _HEAD.size + 4 * self.n_chunk * self.n_ctx

    @property
    def file_bytes(self) -> int:
        """Size of a complete file."""
        return self.rows_offset + self.n_chunk * self.chunk_bytes

    def pack(self) -> bytes:
        return _HEAD.pack(_MAGIC, self.n_ctx, self.n_vocab, self.n_chunk)


class KldFile:
    """An open base file. Rows are mapped, not loaded: a chunk is read when it is asked for, and its memory is given
    back when another one is.

    Use as a context manager, or close it. ``header`` is the `KldHeader`; ``tokens`` (n_chunk, n_ctx) int32
    are the text's own tokens.
    """

    def __init__(self, path: Path, header: KldHeader, tokens: npt.NDArray[np.int32], file: mmap.mmap) -> None:
        self.path = path
        self.header = header
        self.tokens = tokens
        self._map: mmap.mmap | None = file
        self._read = 0  # the chunk whose pages may be in memory

    @classmethod
    def open(cls, path: str | Path) -> KldFile:
        """Open a base file and check its header, size and tokens.

        Raises:
            TraceError: missing, not a base file, counts that are impossible or do not fit the file's size
                (truncated, or followed by other bytes), tokens outside the vocabulary.
        """
        path = Path(path)
        try:
            with path.open("rb") as stream:
                size = stream.seek(0, 2)
                stream.seek(0)
                header = _read_header(path, stream.read(_HEAD.size), size)
                raw = stream.read(header.rows_offset - _HEAD.size)
                file = mmap.mmap(stream.fileno(), header.file_bytes, access=mmap.ACCESS_READ)
            tokens = np.frombuffer(raw, "<i4").reshape(header.n_chunk, header.n_ctx)
        except (OSError, ValueError) as error:  # ValueError: the file shrank after its size was taken
            raise TraceError(
                f"base file '{path}' cannot be read",
                expected="a file written with llama.cpp's --kl-divergence-base",
                got=getattr(error, "strerror", None) or str(error),
                remedy="check the path and its permissions",
            ) from error
        if tokens.min() < 0 or tokens.max() >= header.n_vocab:
            raise TraceError(
                f"base file '{path}' holds tokens outside its vocabulary",
                expected=f"token ids from 0 to {header.n_vocab - 1}",
                got=f"ids from {tokens.min()} to {tokens.max()}",
                remedy=_RECORD_AGAIN,
            )
        return cls(path, header, tokens, file)

    def _block(self, chunk: int) -> npt.NDArray[np.uint16]:
        if self._map is None:
            raise ValueError(f"base file '{self.path}' is closed")
        if not 0 <= chunk < self.header.n_chunk:
            raise IndexError(f"chunk {chunk} of {self.header.n_chunk}")
        if chunk != self._read and hasattr(self._map, "madvise"):  # not on Windows
            # The system takes back the last chunk's pages; a view of them still reads the same, from the file again.
            begin = self._begin(self._read)
            start = begin - begin % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, begin + self.header.chunk_bytes - start)
        self._read = chunk
        words: npt.NDArray[np.uint16] = np.frombuffer(
            self._map, "<u2", self.header.chunk_bytes // 2, self._begin(chunk)
        )
        return words.reshape(self.header.rows_per_chunk, -1)

    def _begin(self, chunk: int) -> int:
        return self.header.rows_offset + chunk * self.header.chunk_bytes

    def rows(
        self, chunk: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
        """One chunk as stored: scale (m,) float32, min_log_prob (m,) float32, codes (m, V) uint16.

        The codes are a view of the file, valid while it is open.

        Raises:
            TraceError: a row whose scale or min_log_prob is no finite number of the right sign.
        """
        block = self._block(chunk)
        heads = np.ascontiguousarray(block[:, :HEAD_WORDS]).view("<f4")
        scale, min_log_prob = heads[:, 0].copy(), heads[:, 1].copy()
        sound = np.isfinite(scale) & (scale >= 0) & np.isfinite(min_log_prob) & (min_log_prob <= 0)
        if not sound.all():
            row = int(np.argmin(sound))
            raise TraceError(
                f"base file '{self.path}', chunk {chunk}: row {row} holds no log-probabilities",
                expected="a finite scale ≥ 0 and a finite smallest log-probability ≤ 0",
                got=f"scale {scale[row]}, smallest log-probability {min_log_prob[row]}",
                remedy="record the reference again; NaN here means that the model gave NaN logits",
            )
        return scale, min_log_prob, block[:, HEAD_WORDS : HEAD_WORDS + self.header.n_vocab]

    def log_probs(self, chunk: int) -> npt.NDArray[np.float32]:
        """One chunk decoded: (m, V) float32 log-probabilities, the values llama.cpp computes with."""
        return decode_rows(*self.rows(chunk))

    def targets(self, chunk: int) -> npt.NDArray[np.int32]:
        """(m,) int32: the token that each row of the chunk predicts."""
        return self.tokens[chunk, self.header.first + 1 :]

    def windows(self, bos: int | None) -> list[Window]:
        """The chunks as windows for an engine; see `kld_windows`."""
        return kld_windows(self.tokens, bos)

    def close(self) -> None:
        """Let go of the file; views handed out keep it mapped."""
        self._map = None

    def __enter__(self) -> KldFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def kld_windows(tokens: npt.NDArray[np.int32], bos: int | None) -> list[Window]:
    """Chunks (n_chunk, n_ctx) as windows scored as llama.cpp scores them: positions ⌊n_ctx/2⌋ to n_ctx − 2.

    Args:
        tokens: the text's own tokens.
        bos: the token fed in place of each chunk's first, or None for a model that adds no BOS.
    """
    n_ctx = tokens.shape[1]
    position = np.arange(n_ctx)
    scored = (position >= n_ctx // 2) & (position < n_ctx - 1)
    out = []
    for index, chunk in enumerate(tokens):
        fed = chunk.copy()
        if bos is not None:
            fed[0] = bos
        # The last position predicts nothing in the chunk and is not scored; the text's own first token, which
        # BOS may have replaced, takes the place of its target, so that a window holds all of its text.
        targets = np.append(chunk[1:], chunk[:1]).astype(np.int32)
        out.append(Window(fed, targets, scored, index, corpus=0, document=0))
    return out


def _read_header(path: Path, raw: bytes, size: int) -> KldHeader:
    """Parse and check the fixed head against the file's size; see `KldFile.open`."""
    if len(raw) < _HEAD.size or not raw.startswith(_MAGIC):
        raise TraceError(
            f"'{path}' is no base file of llama.cpp",
            expected=f"a file that begins with {_MAGIC.decode()!r} and is at least {_HEAD.size} bytes long",
            got=f"{size} bytes, beginning with {raw[:8]!r}",
            remedy="give a file that `llama-perplexity --kl-divergence-base` or `quantvane record` wrote",
        )
    _, n_ctx, n_vocab, n_chunk = _HEAD.unpack(raw)
    counts = f"n_ctx {n_ctx}, vocabulary {n_vocab}, chunks {n_chunk}"
    if n_ctx < 3 or n_vocab < 1 or n_chunk < 1:
        raise TraceError(
            f"base file '{path}' has an impossible header",
            expected="n_ctx of at least 3, a vocabulary and chunks of at least 1",
            got=counts,
            remedy=_RECORD_AGAIN,
        )
    header = KldHeader(n_ctx, n_vocab, n_chunk)
    if size != header.file_bytes:
        whole = max(0, size - header.rows_offset) // header.chunk_bytes
        if size < header.file_bytes:
            message, got = "is truncated", f"{size} bytes, enough for {whole} whole chunks"
        else:
            message, got = "does not end where its header says", f"{size} bytes"
        raise TraceError(
            f"base file '{path}' {message}",
            expected=f"{header.file_bytes} bytes ({counts})",
            got=got,
            remedy=_RECORD_AGAIN,
        )
    return header
