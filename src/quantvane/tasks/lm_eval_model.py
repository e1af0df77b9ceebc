"""lm-evaluation-harness's model interface over our engines.

Importing this module imports lm_eval; use `quantvane.tasks.harness.require_lm_eval` first for a helpful error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from quantvane.corpora.template import ChatTemplate, engine_template
from quantvane.engines.base import Engine
from quantvane.engines.decoding import Decoder, Tokens, open_decoder
from quantvane.errors import CapabilityError
from quantvane.tasks.agreement import Agreement
from quantvane.tasks.cost import UNMEASURED
from quantvane.tasks.generation import generate
from quantvane.tasks.greedy import NO_DRAFT, Answer, Effort, Request
from quantvane.tasks.scoring import Continuation, Score, score

__all__ = ["EngineLM", "Key", "key_of"]

Key = tuple[str, int, int]
"""Task, document number, number of the request within the document."""

_CAPS = ("max_gen_toks", "max_new_tokens", "max_completion_tokens", "max_tokens")
_DEFAULT_CAP = 256  # the harness's own


def key_of(request: Any) -> Key:
    """The key of a harness request."""
    return str(request.task_name), int(request.doc_id or 0), int(request.idx)


class EngineLM(TemplateLM):  # type: ignore[misc]
    """An engine as lm-eval's model: ``lm_eval.simple_evaluate(EngineLM(engine), tasks=[…])`` works as with any other.

    Greedy only. A request that does not fit the context is not cut to fit: it scores −inf or answers "", and
    its note says so.

    Args:
        engine: a loaded model. context: longest request with its answer, in tokens; by default what the model was
            trained for, 4,096 at most. slots: sequences at once.
        reference: a decoder of the reference; log-likelihoods then also measure KL divergence.
        seconds: time allowed for one answer.
        serial: answers grow one sequence at a time (see `generate`).
        markup: prompts come out of a chat template: markup in them is parsed as its tokens, and a BOS that the template
            prints is not doubled. Set by itself when this model renders a template.

    Attributes:
        scores, answers: what was computed, by `key_of` the request. drafts: answers to replay, likewise.
        effort: decode calls and tokens of generation so far. cost: of the decoder's calls, for replay.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        context: int = 0,
        slots: int = 32,
        reference: Decoder | None = None,
        seconds: float = math.inf,
        serial: bool = False,
        markup: bool = False,
    ) -> None:
        super().__init__()
        self._markup = markup
        self._template: ChatTemplate | None = None
        self._engine, self._reference, self._seconds, self._serial = engine, reference, seconds, serial
        self.context = context or min(engine.info.context_trained or 4096, 4096)
        self.decoder = open_decoder(engine, self.context, slots)
        self.scores: dict[Key, Score] = {}
        self.answers: dict[Key, Answer] = {}
        self.drafts: Mapping[Key, Tokens] = {}
        self.effort = Effort()
        self.cost = UNMEASURED
        self._spelled: dict[int, bytes] = {}

    @property
    def eot_token_id(self) -> int:
        return int(self._engine.vocabulary.eos)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or the end token where there is none."""
        vocabulary = self._engine.vocabulary
        return int(vocabulary.bos if vocabulary.bos >= 0 else vocabulary.eos)

    @property
    def tokenizer_name(self) -> str:
        return str(self._engine.info.fingerprint)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; BOS in front where the model wants one, unless told otherwise."""
        bos = self._engine.vocabulary.add_bos if add_special_tokens is None else add_special_tokens
        found: list[int] = self._engine.tokenize(string, add_bos=bool(bos), special=self._markup).tolist()
        return found[1:] if self._markup and found[:2] == [self._engine.vocabulary.bos] * 2 else found

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The model's own template, which the harness stores with its results; "" where none is asked for."""
        return (self._engine.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """Messages through the model's own template.

        Without ``add_generation_prompt`` the last message is one that the model goes on with: the text ends in it.

        Raises:
            CorpusError: the model has no template, or it fails on these messages.
        """
        if self._template is None:
            self._template = engine_template(self._engine, self._engine.chat_template)
            self._markup = True
        text = self._template.render(chat_history, prompt=add_generation_prompt, where="a task's prompt")
        if add_generation_prompt:
            return text
        last = str(chat_history[-1]["content"]).strip()
        return text[: text.rindex(last) + len(last)]

    def encode_pair(self, context: str, continuation: str) -> Continuation:
        """A continuation behind a context, cut as the harness cuts it."""
        before, after = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
        if context:
            before, after = self._encode_pair(context, continuation)
        elif after and after[0] == self.prefix_token_id:
            before, after = after[:1], after[1:]
        return Continuation(np.array([*before, *after], np.int32), len(before))

    def prompt(self, text: str) -> Tokens:
        """The prompt of an answer; never empty."""
        return np.array(self.tok_encode(text) or [self.prefix_token_id], np.int32)

    def measure(self, items: Sequence[Continuation]) -> list[Score]:
        """`score` with this model's decoders."""
        return score(self.decoder, items, self._reference)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(ln p, greedy) of each request's continuation."""
        found = self.measure([self.encode_pair(*request.args[:2]) for request in requests])
        self.scores.update(zip(map(key_of, requests), found, strict=True))
        return [(one.log_prob, one.greedy) for one in found]

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        items = [Continuation(np.array([*c, *t], np.int32), len(c)) for _, c, t in requests]
        return [(one.log_prob, one.greedy) for one in self.measure(items)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """ln p of whole texts, every token once and with as much context as fits, cut as the harness cuts them."""
        items, owner = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.context - 1,
                context_len=1,
            )
            for before, after in map(make_disjoint_window, windows):
                items.append(Continuation(np.array([*before, *after], np.int32), len(before)))
                owner.append(number)
        sums = [0.0] * len(requests)
        for number, one in zip(owner, self.measure(items), strict=True):
            sums[number] += one.log_prob
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The greedy answer to each request, up to its stop string."""
        wanted = [self.request(request) for request in requests]
        found, effort = generate(self.decoder, wanted, self.spell, serial=self._serial, fit=Agreement(self.cost))
        self.answers.update(zip(map(key_of, requests), found, strict=True))
        self.effort += effort
        return [answer.text for answer in found]

    def spell(self, token: int) -> bytes:
        """The bytes of a token, remembered."""
        if token not in self._spelled:
            self._spelled[token] = self._engine.token_bytes(token)
        return self._spelled[token]

    def request(self, request: Any) -> Request:
        """Our form of a harness request, with its draft where there is one."""
        text, settings = request.args[0], dict(request.args[1] or {})
        cap, stops = reading_of(settings)
        draft = self.drafts.get(key_of(request), NO_DRAFT)
        return Request(self.prompt(text), cap, stops, draft, self._seconds)

    def close(self) -> None:
        """Release the decoder; the engine is its opener's."""
        self.decoder.close()


def reading_of(settings: Mapping[str, Any]) -> tuple[int, tuple[bytes, ...]]:
    """(token cap, stop strings) of a task's generation settings.

    Raises:
        CapabilityError: sampling is asked for.
    """
    if settings.get("do_sample") and float(settings.get("temperature") or 1.0) > 0:
        raise CapabilityError(
            "a task asks for sampled answers",
            expected="greedy generation (do_sample: false, or temperature: 0)",
            got=f"do_sample={settings.get('do_sample')}, temperature={settings.get('temperature')}",
            remedy="flips of sampled answers are not defined item by item; set do_sample: false in the task",
        )
    cap = next((int(settings[name]) for name in _CAPS if settings.get(name)), _DEFAULT_CAP)
    until = settings.get("until") or []
    words = [until] if isinstance(until, str) else list(until)
    return cap, tuple(word.encode() for word in words if word)
