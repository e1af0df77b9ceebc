"""llama.cpp in process, through llama-cpp-python's ctypes layer: whole batches, full-vocabulary logits."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import EngineInfo, Vocabulary, Weights
from quantvane.engines.gguf_file import check_gguf, gguf_shards, read_weights, sha256_file
from quantvane.engines.gguf_head import read_gguf_head
from quantvane.engines.llamacpp_batch import Batch, group_windows
from quantvane.engines.llamacpp_generate import LlamaDecoder
from quantvane.engines.output_head import OutputHead
from quantvane.engines.settings import Setting, boolean, choice, integer, read_settings
from quantvane.errors import CapabilityError, EngineError, ModelFileError
from quantvane.types import Window

__all__ = ["SETTINGS", "LlamaCpp", "build_string", "open_llamacpp", "resolve_settings"]

_CACHE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
_FLASH = {"auto": -1, "off": 0, "on": 1}


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The F32 KV cache is ours, not llama.cpp's default: F16 alone costs 2e-6 mean KLD. Flash attention rounds an
# F32 cache to F16 on its way in and so takes the gain away: it is off by default beside an F32 cache
# (docs/engines.md has the figures) and llama.cpp's own "auto" beside any other. A batch of 512 is llama.cpp's own
# unit of computation (its n_ubatch).
SETTINGS: dict[str, Setting] = {
    "n_threads": Setting(_threads, integer(1, 1024), "threads for decoding"),
    "n_batch": Setting(512, integer(1, 65536), "tokens handed to one decode call"),
    "n_ubatch": Setting(512, integer(1, 65536), "tokens computed together; less in long contexts (docs/engines.md)"),
    "n_gpu_layers": Setting(-1, integer(-1, 10000), "layers kept on the GPU; -1 for all"),
    "cache_type_k": Setting("f32", choice(*_CACHE_TYPES), "type of the K cache"),
    "cache_type_v": Setting("f32", choice(*_CACHE_TYPES), "type of the V cache"),
    "flash_attn": Setting("auto", choice(*_FLASH), "flash attention: auto, on or off; off with F32 caches"),
    "offload_kqv": Setting(True, boolean, "keep the KV cache on the GPU"),
    "op_offload": Setting(True, boolean, "large products on the GPU even of layers that are not kept there"),
    "repack": Setting(True, boolean, "let llama.cpp repack weights for this processor"),
}


def _library() -> Any:
    try:
        import llama_cpp
    except ImportError:
        raise CapabilityError(
            "engine 'llamacpp' is not installed",
            expected="the package llama-cpp-python",
            got="no module llama_cpp",
            remedy="pip install llama-cpp-python",
        ) from None
    return llama_cpp


def build_string() -> str:
    """Version and instruction sets of the llama.cpp in use, as it reports them."""
    lib = _library()
    flags = lib.llama_print_system_info().decode(errors="replace")
    on = [part.split("=")[0].strip() for part in flags.split("|") if part.strip().endswith("= 1")]
    return f"llama-cpp-python {lib.__version__} ({' '.join(on)})"


class _Log:
    """llama.cpp's warnings and errors, the last forty lines of them, for error messages."""

    def __init__(self, lib: Any) -> None:
        self.lines: list[str] = []

        def keep(level: int, text: bytes, _: Any) -> None:
            if level >= 3 and text.strip():  # 3 is warn, 4 error, 5 continues the line before
                self.lines.append(text.decode(errors="replace").strip())
                del self.lines[:-40]

        self._callback = lib.llama_log_callback(keep)  # the C side keeps a bare pointer to it
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def tail(self) -> str:
        return " | ".join(line for line in self.lines[-4:]) or "no message"


_log: _Log | None = None


def start_backend() -> tuple[Any, _Log]:
    """The loaded library with its log redirected; done once a process."""
    global _log
    lib = _library()
    if _log is None:
        _log = _Log(lib)
        lib.llama_backend_init()
    return lib, _log


class LlamaCpp:
    """A loaded GGUF model. Use `open_llamacpp`."""

    def __init__(self, path: str, settings: dict[str, Any], context: int, weights: Weights) -> None:
        self._lib, self._logged = start_backend()
        self._weights = weights
        self._path, self._settings, self._context = path, settings, context
        self._threads: int = settings["n_threads"]
        self._model: Any = None
        self._ctx: Any = None
        self._hidden_ctx: Any = None
        self._load()
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self._n_vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._vocabulary: Vocabulary | None = None
        self._info: EngineInfo | None = None
        self._batch: Batch | None = None

    def _load(self) -> None:
        lib, given = self._lib, self._settings
        params = lib.llama_model_default_params()
        params.n_gpu_layers = given["n_gpu_layers"]
        if hasattr(params, "use_extra_bufts"):
            params.use_extra_bufts = given["repack"]
        self._model = lib.llama_model_load_from_file(str(self._path).encode(), params)
        if not self._model:
            raise ModelFileError(
                f"llama.cpp cannot load '{self._path}'",
                expected="a complete GGUF model of an architecture this build knows",
                got=self._logged.tail(),
                remedy="check the file, or update llama-cpp-python for new architectures",
            )

    def _parameters(self) -> Any:
        """Context parameters under the engine's settings; how many tokens and sequences is the caller's affair."""
        given = self._settings
        params = self._lib.llama_context_default_params()
        params.n_batch, params.n_ubatch = given["n_batch"], given["n_ubatch"]
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k, params.type_v = _CACHE_TYPES[given["cache_type_k"]], _CACHE_TYPES[given["cache_type_v"]]
        params.flash_attn_type = _FLASH[given["flash_attn"]]
        params.offload_kqv, params.op_offload = given["offload_kqv"], given["op_offload"]
        params.no_perf = True
        return params

    def decoder(self, context: int, slots: int) -> LlamaDecoder:
        """Many sequences of up to ``context`` tokens at once, in a context of their own."""
        return LlamaDecoder(self._lib, self._model, self._parameters(), context, slots, self._logged.tail)

    def _open_context(self, hidden: bool = False) -> Any:
        lib, given = self._lib, self._settings
        self._sequences = max(1, given["n_batch"] // self._context)
        params = self._parameters()
        params.n_ctx = self._sequences * self._context
        params.n_batch = min(given["n_batch"], params.n_ctx)
        params.n_ubatch = min(given["n_ubatch"], params.n_batch)
        params.n_seq_max = self._sequences
        if hidden:
            params.embeddings, params.pooling_type = True, lib.LLAMA_POOLING_TYPE_NONE
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise EngineError(
                f"llama.cpp cannot make a context for '{self._path}'",
                expected=f"memory and support for {params.n_ctx} tokens, cache {given['cache_type_k']}/"
                f"{given['cache_type_v']}, flash attention {given['flash_attn']}",
                got=self._logged.tail(),
                remedy="a smaller context or n_batch, or cache types this build supports (a quantized V cache "
                "needs flash_attn=on)",
            )
        if self._batch is None:
            self._batch = Batch(lib, int(params.n_batch))
        return context

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            lib = self._lib
            buffer = ctypes.create_string_buffer(256)
            lib.llama_model_desc(self._model, buffer, 256)
            shards = gguf_shards(self._path)
            prints = [sha256_file(shard) for shard in shards]
            self._info = EngineInfo(
                engine="llamacpp",
                build=build_string(),
                device=_device(lib, self._settings),
                settings=dict(self._settings),
                fingerprint=prints[0] if len(prints) == 1 else sha256_lines(prints),
                architecture=buffer.value.decode(errors="replace"),
                capabilities=frozenset({"logits", "hidden", "generate"}),
                weights=self._weights,
                context_trained=int(lib.llama_model_n_ctx_train(self._model)),
            )
        return self._info

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            lib, vocab = self._lib, self._vocab
            texts = (lib.llama_vocab_get_text(vocab, i) for i in range(self._n_vocab))
            pieces = tuple(
                # The converter fills a padded table with [PADn]; such rows name no token.
                None if text == f"[PAD{i}]" else text
                for i, text in enumerate(t.decode(errors="replace") if t else "" for t in texts)
            )
            self._vocabulary = Vocabulary(
                pieces=pieces,
                bos=int(lib.llama_vocab_bos(vocab)),
                eos=int(lib.llama_vocab_eos(vocab)),
                add_bos=bool(lib.llama_vocab_get_add_bos(vocab)),
            )
        return self._vocabulary

    @property
    def chat_template(self) -> str | None:
        text = self._lib.llama_model_chat_template(self._model, None)
        return text.decode(errors="replace") if text else None

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> npt.NDArray[np.int32]:
        data = text.encode()
        room = len(data) + 16
        for _ in range(2):
            ids = np.empty(room, np.int32)
            pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = self._lib.llama_tokenize(self._vocab, data, len(data), pointer, room, add_bos, special)
            if count >= 0:
                return ids[:count].copy()
            room = -count
        raise EngineError("llama.cpp failed to tokenize", expected=f"{room} tokens", got=str(count))

    def token_bytes(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, 256, 0, True)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._lib.llama_token_to_piece(self._vocab, token, buffer, -count, 0, True)
        return buffer.raw[: max(count, 0)]

    def logits(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """See `Engine.logits`. A block is the output of one decode call: at most ``n_batch`` rows."""
        if self._ctx is None:
            self._ctx = self._open_context()
        batch = self._batch
        assert batch is not None
        for group in self._groups(windows, batch):
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), False)
            for rows in batch.fill(group):
                self._decode(self._ctx, batch)
                if rows:
                    yield _matrix(self._lib.llama_get_logits(self._ctx), rows, self._n_vocab)

    def logits_and_hidden(
        self, windows: Sequence[Window]
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Logits (rows, V) and final hidden states after the norm (rows, d) of every scored position, in order.

        Both come from one decode call. llama.cpp gives hidden states of all tokens of a call or of none, so the
        head is computed for the unscored ones too: at most twice the head's work, and a host buffer of
        ``n_batch`` · V · 4 bytes. Raises EngineError where decoding fails.
        """
        if self._hidden_ctx is None:
            self._hidden_ctx = self._open_context(hidden=True)
        lib, batch = self._lib, self._batch
        assert batch is not None
        width = int(lib.llama_model_n_embd(self._model))
        for group in self._groups(windows, batch):
            lib.llama_memory_clear(lib.llama_get_memory(self._hidden_ctx), False)
            for rows in batch.fill(group):
                scored = batch.want_all()
                self._decode(self._hidden_ctx, batch)
                if rows:
                    logits = _matrix(lib.llama_get_logits(self._hidden_ctx), len(scored), self._n_vocab)
                    states = _matrix(lib.llama_get_embeddings(self._hidden_ctx), len(scored), width)
                    yield logits[scored], states[scored]

    def hidden(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """See `quantvane.engines.output_head.HiddenEngine.hidden`; costs what `logits_and_hidden` costs."""
        for _, states in self.logits_and_hidden(windows):
            yield states

    def output_heads(self) -> list[OutputHead]:
        """The head as ggml's CPU kernels compute it, then as a kernel that rounds nothing would.

        Raises:
            CapabilityError: see `read_gguf_head`.
        """
        head = read_gguf_head(self._path, self._n_vocab)
        return [head] if head.rounding == "f32" else [head, replace(head, rounding="f32")]

    def head(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, float, float | None]:
        """W (V, d) float32, bias (V,) float32 or None, scale, softcap: see `OutputHead` for the formula."""
        head = self.output_heads()[0]
        return head.weight, head.bias, head.scale, head.softcap

    def _groups(self, windows: Sequence[Window], batch: Batch) -> Iterator[list[Window]]:
        longest = max((len(w.tokens) for w in windows), default=0)
        if longest > self._context:
            raise EngineError(
                "a window is longer than the context the engine was opened for",
                expected=f"at most {self._context} tokens",
                got=f"{longest} tokens",
            )
        return group_windows(windows, batch.capacity, self._sequences)

    def _decode(self, context: Any, batch: Batch) -> None:
        status = self._lib.llama_decode(context, batch.struct)
        if status != 0:
            raise EngineError(
                f"llama.cpp failed to decode with '{self._path}'",
                expected="status 0",
                got=f"status {status}: {self._logged.tail()}",
                remedy="a smaller n_batch or context; check free memory",
            )

    def share_threads(self, models: int) -> None:
        """Decode on a share of ``n_threads`` from now on, because ``models`` models decode at once.

        llama.cpp's results do not depend on its number of threads.
        """
        self._threads = max(1, self._settings["n_threads"] // models)
        if self._ctx is not None:
            self._lib.llama_set_n_threads(self._ctx, self._threads, self._threads)

    def close(self) -> None:
        for context in (self._ctx, self._hidden_ctx):
            if context is not None:
                self._lib.llama_free(context)
        self._ctx = self._hidden_ctx = None
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None


def _device(lib: Any, settings: Mapping[str, Any]) -> str:
    """Where it computes: "cpu", "gpu", or "cpu+gpu" where the layers stay but llama.cpp lends their work to the GPU."""
    if not lib.llama_supports_gpu_offload():
        return "cpu"
    if settings["n_gpu_layers"] != 0:
        return "gpu"
    return "cpu+gpu" if settings["op_offload"] or settings["offload_kqv"] else "cpu"


def _matrix(pointer: Any, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """A view of llama.cpp's own buffer, valid until the next decode call."""
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (rows, columns))


def sha256_lines(lines: Sequence[str]) -> str:
    """SHA-256 of lines joined by newlines: the fingerprint of a model in several files."""
    import hashlib

    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Without flash attention the scores of a micro-batch, n_ubatch × context × heads, are held in full.
_SCORES = 512 * 2048
_LEAST_UBATCH = 32


def resolve_settings(settings: Mapping[str, Any], context: int = 512) -> dict[str, Any]:
    """Every setting in force for what a spec gives and windows of up to ``context`` tokens; see `SETTINGS`.

    Raises:
        SpecError: an unknown setting or a value that cannot be.
    """
    values = read_settings("llamacpp", SETTINGS, settings)
    if "flash_attn" not in settings and values["cache_type_k"] == values["cache_type_v"] == "f32":
        values["flash_attn"] = "off"
    if "n_ubatch" not in settings and values["flash_attn"] == "off" and not _library().llama_supports_gpu_offload():
        values["n_ubatch"] = min(values["n_ubatch"], max(_LEAST_UBATCH, _SCORES // context))
    return values


def open_llamacpp(path: str, settings: Mapping[str, Any], context: int = 512) -> LlamaCpp:
    """Load a GGUF model.

    Args:
        path: the file, or the first of its shards.
        settings: values for `SETTINGS`, as text or in their own type.
        context: longest window that will be asked for, in tokens.

    Raises:
        ModelFileError: missing or damaged file. SpecError: an unknown setting.
    """
    values = resolve_settings(settings, context)
    for shard in gguf_shards(Path(path)):
        check_gguf(shard)
    weights = read_weights(path)  # a truncated file is refused here, before the library maps it
    return LlamaCpp(path, values, context, weights)
