"""Hugging Face models through transformers: local safetensors directories, float32 head, scored rows only.

The model runs up to its final hidden states; only scored positions go through the head (see `hf_head`). torch
and transformers are imported when a model is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import EngineInfo, Vocabulary
from quantvane.engines.gguf_file import gguf_shards, read_weights
from quantvane.engines.gguf_weights import load_gguf_weights
from quantvane.engines.hf_decoder import HfDecoder
from quantvane.engines.hf_head import BLOCK_BYTES, Head, recognise
from quantvane.engines.hf_tokenizer import HfTokenizer
from quantvane.engines.safetensors_files import fingerprint, read_headers, weight_files, weights_of
from quantvane.engines.settings import Setting, choice, integer, read_settings
from quantvane.errors import CapabilityError, DataError, EngineError, ModelFileError, SpecError
from quantvane.types import Window

__all__ = ["SETTINGS", "HfEngine", "open_hf"]

_T = TypeVar("_T")


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SETTINGS: dict[str, Setting] = {
    "dtype": Setting("float32", choice("float32", "bfloat16", "float16"), "type the model computes in"),
    "device": Setting("cpu", str.strip, "torch device: cpu, cuda, cuda:1, mps"),
    "attn": Setting("sdpa", choice("sdpa", "eager"), "attention: fused (sdpa) or spelled out (eager)"),
    "batch_tokens": Setting(2048, integer(1, 1 << 24), "tokens of equally long windows computed together"),
    "n_threads": Setting(_threads, integer(1, 1024), "threads of torch; they belong to the whole process"),
    "weights": Setting("", str.strip, "a GGUF file whose dequantized weights replace the directory's"),
}


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as problem:
        raise CapabilityError(
            "engine 'hf' is not installed",
            expected="the packages torch and transformers",
            got=str(problem),
            remedy='install quantvane[hf]: pip install "quantvane[hf]"',
        ) from None
    return torch, transformers


def _dtype_word(version: str) -> str:
    """from_pretrained's word for the type: renamed in transformers 4.56."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


class HfEngine:
    """A loaded transformers model. Use `open_hf`.

    Attributes:
        model: the torch module, for gradients; ``logits`` and ``hidden`` themselves keep none.
        vocabulary: see `Engine.vocabulary`.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self._files = weight_files(directory)
        self._headers = read_headers(self._files)
        self._path, self._settings = directory, settings
        self._torch, self._transformers = _libraries()
        self._device = self._find_device()
        self._torch.set_num_threads(settings["n_threads"])
        self.model: Any = self._load()
        if settings["weights"]:
            load_gguf_weights(self.model, settings["weights"])
        self._head = self._run(self._prove_head)
        self._tokenizer = HfTokenizer(directory, int(self._head.weight.shape[0]))
        self.vocabulary: Vocabulary = self._tokenizer.vocabulary
        self._info: EngineInfo | None = None

    def _find_device(self) -> Any:
        torch, name = self._torch, self._settings["device"]
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as problem:
            raise SpecError(
                f"setting 'device' of engine 'hf' cannot be '{name}'",
                expected="a device this torch can compute on",
                got=str(problem).splitlines()[0],
                remedy="?device=cpu, or a torch built for the device",
            ) from None
        return device

    def _load(self) -> Any:
        given = self._settings
        self._transformers.utils.logging.disable_progress_bar()
        try:
            model, report = self._transformers.AutoModelForCausalLM.from_pretrained(
                str(self._path),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation=given["attn"],
                output_loading_info=True,
                **{_dtype_word(self._transformers.__version__): getattr(self._torch, given["dtype"])},
            )
            model = model.eval().to(self._device)
        except Exception as problem:  # the library raises many kinds for what a directory may lack
            got = f"{type(problem).__name__}: {str(problem).strip()[:400]}"
            if isinstance(problem, MemoryError) or "out of memory" in str(problem):
                raise EngineError(
                    f"no memory for '{self._path}'", got=got, remedy="?dtype=bfloat16"
                ) from None
            if "scaled_dot_product_attention" in got:
                raise SpecError(
                    f"the architecture of '{self._path}' has no fused attention",
                    expected="attn=eager",
                    got="attn=sdpa",
                    remedy="add ?attn=eager to the spec",
                ) from None
            raise ModelFileError(
                f"transformers cannot load '{self._path}'",
                expected="a causal language model this version knows, without code of its own",
                got=got,
                remedy="check config.json and the weights, or update transformers",
            ) from None
        # The library fills what a checkpoint lacks with random numbers and goes on.
        if missing := sorted(report["missing_keys"]):
            raise ModelFileError(
                f"'{self._path}' lacks weights its config calls for",
                expected=", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else ""),
                got=f"{len(self._headers)} tensors without them",
                remedy="take config.json and weights from the same source",
            )
        return model

    def _run(self, work: Callable[[], _T]) -> _T:
        """Run torch work without gradients; its failures come out as EngineError."""
        try:
            with self._torch.inference_mode():
                return work()
        except (RuntimeError, IndexError, ValueError) as problem:
            raise EngineError(
                f"the model of '{self._path}' failed",
                expected="a forward pass",
                got=f"{type(problem).__name__}: {str(problem).strip()[:300]}",
                remedy="a smaller batch_tokens or context; check free memory",
            ) from None

    def _prove_head(self) -> Head:
        vocab = int(self.model.config.get_text_config().vocab_size)
        ids = self._torch.arange(min(4, vocab), device=self._device)[None]
        hidden = self._final(ids)[0]
        return recognise(self.model, hidden, self.model(input_ids=ids, use_cache=False).logits[0])

    def _final(self, ids: Any) -> Any:
        """(B, n) ids → (B, n, d) hidden states after the final norm."""
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`; the first call reads the weight files through for their fingerprint."""
        if self._info is None:
            torch, config = self._torch, self.model.config.get_text_config()
            quantized = getattr(self.model.config, "quantization_config", None)
            bits = quantized.get("bits") if isinstance(quantized, dict) else getattr(quantized, "bits", None)
            capability = torch.backends.cpu.get_cpu_capability()
            gguf: str = self._settings["weights"]
            versions = f"transformers {self._transformers.__version__}, torch {torch.__version__}"
            self._info = EngineInfo(
                engine="hf",
                build=f"{versions} ({capability})",
                device=str(self._device),
                settings=dict(self._settings),
                fingerprint=fingerprint([*self._files, *gguf_shards(gguf)] if gguf else self._files),
                architecture=type(self.model).__name__,
                capabilities=frozenset({"logits", "hidden", "generate", "gradients"}),
                weights=read_weights(gguf)
                if gguf
                else weights_of(
                    self._files,
                    self._headers,
                    tied=self._tied_names(),
                    packed_bits=bits if isinstance(bits, int) else None,
                ),
                context_trained=int(getattr(config, "max_position_embeddings", 0) or 0),
            )
        return self._info

    def _tied_names(self) -> frozenset[str]:
        """Names under which one tensor serves as embedding and head."""
        weight = self.model.get_output_embeddings().weight
        named = self.model.named_parameters(remove_duplicate=False)
        return frozenset(name for name, parameter in named if parameter is weight)

    @property
    def chat_template(self) -> str | None:
        """See `Engine.chat_template`."""
        return self._tokenizer.chat_template

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> npt.NDArray[np.int32]:
        """See `Engine.tokenize` and `HfTokenizer.tokenize`."""
        return self._tokenizer.tokenize(text, special=special, add_bos=add_bos)

    def token_bytes(self, token: int) -> bytes:
        """See `Engine.token_bytes`."""
        return self._tokenizer.token_bytes(token)

    def head(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, float, float | None]:
        """W (V, d) float32, bias (V,) float32 or None, scale, softcap: see `Head` for the formula."""
        head = self._head
        bias = None if head.bias is None else head.bias.cpu().numpy()
        return head.weight.cpu().numpy(), bias, head.scale, head.softcap

    def hidden(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """Final hidden states, after the norm, of every scored position in order: (rows, d) float32 blocks.

        ``head()`` applied to them gives `logits`. Raises EngineError where the forward pass fails.
        """
        for states in self._states(windows):
            rows = max(1, BLOCK_BYTES // (4 * int(states.shape[1])))
            for start in range(0, int(states.shape[0]), rows):
                block: npt.NDArray[np.float32] = states[start : start + rows].float().cpu().numpy()
                yield block

    def logits(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """See `Engine.logits`. A block takes at most 64 MiB, or is one row.

        Raises:
            EngineError: a forward pass that failed, or NaN logits.
        """
        for states in self._states(windows):
            blocks = self._head.blocks(states)
            while (block := self._run(lambda blocks=blocks: next(blocks, None))) is not None:  # type: ignore[misc]
                if np.isnan(block).any():
                    raise EngineError(
                        f"the model of '{self._path}' gave NaN logits",
                        expected="numbers",
                        got=f"NaN in {int(np.isnan(block).any(axis=1).sum())} of {len(block)} rows",
                        remedy="?dtype=float32 or bfloat16 (float16 overflows in some models)",
                    )
                yield block

    def _states(self, windows: Sequence[Window]) -> Iterator[Any]:
        """Scored rows (rows, d) of one forward pass after another, in the model's own type."""
        for group in _equal_lengths(windows, self._settings["batch_tokens"]):
            ids = self._ids(np.stack([window.tokens for window in group]))
            wanted = self._torch.from_numpy(np.stack([window.scored for window in group])).to(self._device)
            if bool(wanted.any()):
                yield self._run(lambda ids=ids, wanted=wanted: self._final(ids)[wanted])  # type: ignore[misc]

    def _ids(self, tokens: npt.NDArray[np.int32]) -> Any:
        low, high = int(tokens.min(initial=0)), int(tokens.max(initial=0))
        if low < 0 or high >= len(self.vocabulary):
            raise DataError(
                "a token lies outside the vocabulary",
                expected=f"0 … {len(self.vocabulary) - 1}",
                got=str(low if low < 0 else high),
                remedy="tokenize with this model's own tokenizer",
            )
        return self._torch.from_numpy(tokens.astype(np.int64)).to(self._device)

    def generate(
        self, prompt: npt.NDArray[np.int32], max_tokens: int, stop: Collection[int] = ()
    ) -> npt.NDArray[np.int32]:
        """Greedy continuation of one prompt, (m,) int32, m ≤ max_tokens; the first index wins a tie.

        The float32 head is used, as in `logits`. It ends after the first token in ``stop`` or EOS, which is
        included.
        """
        if len(prompt) == 0:
            raise DataError("generation needs a prompt", expected="at least one token", got="none")
        ends = {*stop, self.vocabulary.eos}
        fed, cache, out = prompt, None, list[int]()
        while len(out) < max_tokens and (not out or out[-1] not in ends):
            logits, cache = self.extend(fed, cache, 1)
            out.append(int(np.argmax(logits)))  # numpy takes the first of equals; torch makes no promise
            fed = np.array(out[-1:], np.int32)
        return np.array(out, np.int32)

    def extend(
        self, tokens: npt.NDArray[np.int32], cache: Any, rows: int
    ) -> tuple[npt.NDArray[np.float32], Any]:
        """One sequence goes on: logits (rows, V) at the last ``rows`` of ``tokens`` (n,), and the cache.

        Args:
            cache: what an earlier call returned, holding what stands before; None where nothing does.
        """
        ids = self._ids(tokens[None])

        def step() -> tuple[npt.NDArray[np.float32], Any]:
            result = self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            logits = self._head.apply(result.last_hidden_state[0, len(tokens) - rows :])
            return logits.cpu().numpy(), result.past_key_values

        return self._run(step)

    def decoder(self, context: int, slots: int) -> HfDecoder:
        """Many sequences of up to ``context`` tokens at once, each with its cache."""
        return HfDecoder(self, context, slots)

    def close(self) -> None:
        """Drop the model; the engine cannot be used afterwards."""
        self.model = self._head = None  # type: ignore[assignment]
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


def _equal_lengths(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Consecutive windows of one length, up to ``batch_tokens`` tokens and at least one window at a time.

    Nothing is padded, so no attention mask can differ between a window alone and in company.
    """
    group: list[Window] = []
    for window in windows:
        n = len(window.tokens)
        if group and (len(group[0].tokens) != n or (len(group) + 1) * n > batch_tokens):
            yield group
            group = []
        if n:
            group.append(window)
    if group:
        yield group


def open_hf(path: str, settings: Mapping[str, object]) -> HfEngine:
    """Load a model directory.

    Args:
        path: a local directory with config.json, safetensors weights and tokenizer files. Nothing is fetched,
            and no code from the directory is run.
        settings: values for `SETTINGS`, as text or in their own type.

    Raises:
        SpecError: an unknown setting or device.
        ModelFileError: see `weight_files`; files that transformers cannot load; weights or tokenizer missing.
        CapabilityError: torch or transformers is not installed.
        EngineError: a head that cannot be computed apart from the model.
    """
    return HfEngine(Path(path), read_settings("hf", SETTINGS, settings))
