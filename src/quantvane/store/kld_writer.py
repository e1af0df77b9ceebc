"""Write llama.cpp's ``--kl-divergence-base`` file, bit for bit, so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError, OutputError
from quantvane.store.kld_file import KldHeader
from quantvane.store.kld_rows import encode_rows

__all__ = ["KldWriter"]


class KldWriter:
    """Writes one base file; a context manager.

    Rows go to a hidden file beside ``path``, which takes its name when the block ends with every row there;
    an existing file is replaced only then. Where the block ends otherwise, ``path`` is left as it was.

    Args:
        path: the file to make.
        tokens: (n_chunk, n_ctx) int32, the text's own tokens (no BOS put in), n_ctx at least 3.
        n_vocab: vocabulary size V.
        resume_key: everything that fixes the rows besides tokens and V (model fingerprint, engine settings).
            With one, an interrupted writer leaves its whole chunks, and the next writer with the same key,
            tokens and V continues after them: skip the first ``chunks_done`` chunks. Without, it starts anew.

    Example::

        with KldWriter(path, tokens, n_vocab, resume_key=key) as writer:
            for block in engine.logits(windows[writer.chunks_done :]):
                writer.append(block)

    Raises:
        DataError: tokens, rows or their number do not fit. OutputError: the place cannot be written.
    """

    def __init__(
        self, path: str | Path, tokens: npt.NDArray[np.int32], n_vocab: int, *, resume_key: str = ""
    ) -> None:
        self.path = Path(path)
        self.header = _checked_header(tokens, n_vocab)
        self.rows_done = 0
        self._preamble = self.header.pack() + np.ascontiguousarray(tokens, "<i4").tobytes()
        self._resumable = bool(resume_key)
        tag = hashlib.sha256(self._preamble + resume_key.encode()).hexdigest()[:16]
        name = tag if resume_key else f"{tag}.{os.getpid()}"
        self._partial = self.path.with_name(f".{self.path.name}.{name}.partial")
        self._stream: BinaryIO | None = None

    @property
    def chunks_done(self) -> int:
        """Whole chunks written so far, those of an earlier, interrupted writer included."""
        return self.rows_done // self.header.rows_per_chunk

    def __enter__(self) -> KldWriter:
        try:
            self._stream = self._open_partial()
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def _open_partial(self) -> BinaryIO:
        stream = open(self._partial, "a+b")  # noqa: SIM115 - closed in __exit__
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"base file '{self.path}' is being written by another process",
                    got=f"a lock on '{self._partial.name}'",
                    remedy="wait for it to end, or write to another path",
                ) from error
            stream.seek(0)
            if self._resumable and stream.read(len(self._preamble)) == self._preamble:
                done = (stream.seek(0, os.SEEK_END) - len(self._preamble)) // self.header.chunk_bytes
                done = min(done, self.header.n_chunk)
                stream.truncate(len(self._preamble) + done * self.header.chunk_bytes)
                self.rows_done = done * self.header.rows_per_chunk
            else:
                stream.truncate(0)
                stream.write(self._preamble)
                self.rows_done = 0
        except BaseException:
            stream.close()
            raise
        return stream

    def append(self, logits: npt.NDArray[np.float32]) -> None:
        """Encode and write the next rows, in order: (T, V) float32 logits of any T; chunks need not align.

        Raises:
            DataError: another V, NaN, or more rows than the file holds. OutputError: for example a full disk.
        """
        if self._stream is None:
            raise ValueError("append outside the with block")
        left = self.header.n_chunk * self.header.rows_per_chunk - self.rows_done
        if logits.ndim != 2 or logits.shape[1] != self.header.n_vocab or len(logits) > left:
            raise DataError(
                f"logits do not fit base file '{self.path}'",
                expected=f"at most {left} rows of {self.header.n_vocab} logits",
                got=f"shape {logits.shape}",
                remedy="give the scored rows of this file's chunks only, by the model it is made for",
            )
        words = encode_rows(logits)
        try:
            self._stream.write(words.data)
            before = self.chunks_done
            self.rows_done += len(logits)
            if self._resumable and self.chunks_done > before:
                # A file's length can reach the disk before its bytes do; a resumed chunk must hold both.
                self._stream.flush()
                os.fdatasync(self._stream.fileno())
        except OSError as error:
            raise self._cannot_write(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        stream, self._stream = self._stream, None
        complete = False
        try:
            if kind is None:
                stream.flush()
                os.fsync(stream.fileno())
                # The size, not the count of rows: a write that failed half way must never be named complete.
                complete = os.fstat(stream.fileno()).st_size == self.header.file_bytes
                if complete:
                    os.replace(self._partial, self.path)
        except OSError as failure:
            raise self._cannot_write(failure) from failure
        finally:
            if not self._resumable:
                self._partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # closing flushes; a full disk has been reported by then
                stream.close()
        if kind is None and not complete:
            raise DataError(
                f"base file '{self.path}' is incomplete and was not made",
                expected=f"{self.header.n_chunk * self.header.rows_per_chunk} rows",
                got=f"{self.rows_done} rows",
                remedy="append the rows of every chunk before the block ends",
            )

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(
            f"base file '{self.path}' cannot be written",
            expected=f"a folder with {self.header.file_bytes} bytes free",
            got=error.strerror or str(error),
            remedy="check the folder, its permissions and the free space",
        )


def _checked_header(tokens: npt.NDArray[np.int32], n_vocab: int) -> KldHeader:
    sound = tokens.ndim == 2 and tokens.dtype == np.int32 and tokens.shape[1] >= 3 and tokens.size > 0
    if not sound or n_vocab < 1 or tokens.min() < 0 or tokens.max() >= n_vocab:
        got = f"{tokens.dtype} {tokens.shape}"
        if sound:
            got += f", ids from {tokens.min()} to {tokens.max()}"
        raise DataError(
            "tokens for a base file have the wrong shape, type or range",
            expected=f"an int32 array (chunks ≥ 1, n_ctx ≥ 3) of ids from 0 to {n_vocab - 1}",
            got=got,
            remedy="cut the text into chunks of equal length with the reference's own tokenizer",
        )
    return KldHeader(n_ctx=tokens.shape[1], n_vocab=n_vocab, n_chunk=tokens.shape[0])
