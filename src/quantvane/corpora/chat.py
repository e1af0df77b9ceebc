"""Conversations → windows: the model's own chat template, and only the assistant's tokens scored.

A line of the JSONL text is ``{"messages": [{"role", "content"}, …], "category"?: str, "id"?: str}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.corpora.template import ChatTemplate, engine_template
from quantvane.engines.base import Engine
from quantvane.errors import CorpusError
from quantvane.types import Window

__all__ = ["ChatReport", "ChatWindows", "Conversation", "chat_windows", "read_conversations"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of the text: its number from 1, messages, category and id ("" where the line has none)."""

    line: int
    messages: tuple[dict[str, Any], ...]
    category: str
    id: str


@dataclass(frozen=True, slots=True)
class ChatReport:
    """What became of the conversations.

    Attributes:
        conversations: lines read. windows: conversations with something to score.
        cut: conversations longer than the context, of which only the beginning is used (skipped ones too).
        skipped: conversations without an assistant token to score within the context.
        tokens: scored tokens.
    """

    conversations: int
    windows: int
    cut: int
    skipped: int
    tokens: int

    def to_dict(self) -> dict[str, int]:
        """Field name → count."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ChatWindows:
    """A window for each conversation that has something to score, and the account of all of them."""

    windows: tuple[Window, ...]
    report: ChatReport


def read_conversations(text: str, name: str = "") -> Iterator[Conversation]:
    """The conversations of a JSONL text, blank lines left out.

    Raises:
        CorpusError: a line that is no conversation, with its number.
    """
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped, and they end no line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as problem:
            raise _bad_line(name, number, str(problem)) from None
        messages = entry.get("messages") if isinstance(entry, dict) else None
        if not isinstance(messages, list) or not messages:
            raise _bad_line(name, number, line[:60])
        for place, message in enumerate(messages):
            fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None,)
            if not all(isinstance(value, str) for value in fields):
                raise _bad_line(name, number, f"message {place}: {json.dumps(message)[:60]}")
        labels = [entry.get(key) for key in ("category", "id")]
        if not all(label is None or isinstance(label, str) for label in labels):
            raise _bad_line(name, number, f"category and id: {labels}")
        yield Conversation(number, tuple(messages), labels[0] or "", labels[1] or "")


def _bad_line(name: str, number: int, got: str) -> CorpusError:
    return CorpusError(
        f"line {number} of '{name or 'the text'}' is not a conversation",
        expected='{"messages": [{"role": str, "content": str}, …], "category"?: str, "id"?: str}',
        got=got,
        remedy="mend or remove the line",
    )


def _spans(
    template: ChatTemplate, conversation: Conversation, where: str
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the [start, end) characters of the assistant's turns.

    A turn is what the rendering gains from the prompt that opens it to the message itself: its text and
    whatever closes it. White space after a closing mark belongs to the template and is left out.
    """
    messages = conversation.messages
    last = len(messages) - 1
    whole = template.render(messages, prompt=False, where=where)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        here = f"message {i} of {where}"
        before = template.render(messages[:i], prompt=True, where=here)
        upto = whole if i == last else template.render(messages[: i + 1], prompt=False, where=here)
        for shorter, longer in ((before, upto), (upto, whole)):
            if not longer.startswith(shorter):
                raise _rewritten(here, shorter, longer)
        turn = upto[len(before) :]
        closed = turn.rstrip()
        # where nothing but white space ends the turn, white space is the end-of-turn mark
        end = len(turn) if closed.endswith(message["content"].strip()) else len(closed)
        spans.append((len(before), len(before) + end))
    return whole, spans


def _rewritten(where: str, shorter: str, longer: str) -> CorpusError:
    pairs = enumerate(zip(shorter, longer, strict=False))
    at = next((i for i, (x, y) in pairs if x != y), min(len(shorter), len(longer)))
    return CorpusError(
        f"the chat template rewrites what came before or stands in {where}",
        expected=f"a rendering that only grows: … {shorter[max(at - 20, 0) : at + 20]!r} …",
        got=f"… {longer[max(at - 20, 0) : at + 20]!r} … once more of the conversation is rendered",
        remedy="give a template that leaves earlier turns alone (no reasoning stripped from them, nothing in "
        "the prompt that the history lacks): --chat-template FILE",
    )


class _Aligner:
    """Where in a text each of its tokens starts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._markup: dict[int, bool] = {}

    def is_markup(self, token: int) -> bool:
        """Whether a token's own text makes this token only where markup is parsed."""
        if token not in self._markup:
            try:
                text = self._engine.token_bytes(token).decode()
            except UnicodeDecodeError:  # a part of a character is text
                text = ""
            plain, parsed = (self._engine.tokenize(text, special=parse) for parse in (False, True))
            self._markup[token] = token in parsed and token not in plain
        return self._markup[token]

    def starts(self, tokens: npt.NDArray[np.int32], text: bytes, where: str) -> npt.NDArray[np.int64]:
        """Byte offset (n,) at which each token starts.

        The tokens' bytes must spell the text. Two liberties that tokenizers take are allowed for: a blank put
        before the text at its beginning or after markup (SentencePiece), and white space swallowed beside
        markup.

        Raises:
            CorpusError: the tokens spell something else.
        """
        starts = np.zeros(len(tokens), np.int64)
        at = 0
        blank_due = True  # a blank may still be put before the text since the last markup
        for i, token in enumerate(tokens.tolist()):
            piece = self._engine.token_bytes(token)
            fits = text.startswith(piece, at)
            after_markup = i > 0 and self.is_markup(int(tokens[i - 1]))
            blank_due = blank_due or after_markup
            if not fits and (after_markup or self.is_markup(token)):
                rest = text[at:].lstrip()
                if rest.startswith(piece):
                    at, fits = len(text) - len(rest), True
            starts[i] = at
            if not fits and blank_due and piece[:1] == b" " and text.startswith(piece[1:], at):
                piece, fits, blank_due = piece[1:], True, False
            if not fits:
                raise CorpusError(
                    f"the tokens of {where} do not spell its text",
                    expected=repr(text[at : at + 20]),
                    got=f"token {i} = {token} {piece!r}",
                    remedy="the tokenizer changes text (case, blanks, unknown characters): the chat protocol "
                    "cannot tell whose tokens are whose",
                )
            at += len(piece)
        if text[at:].strip():
            raise CorpusError(
                f"the tokens of {where} end before its text does",
                expected=repr(text[at : at + 20]),
                got="no more tokens",
                remedy="the tokenizer drops text: the chat protocol cannot be used with it",
            )
        return starts


def chat_windows(
    engine: Engine, text: str, *, context: int, template: str | None, corpus: int, name: str = ""
) -> ChatWindows:
    """Windows of a text of conversations.

    Each conversation is rendered and tokenized whole, markup parsed (also markup spelled out in a message's
    content, as it is wherever a template is deployed). Scored are the positions whose target token starts
    inside an assistant turn, the token that closes the turn included. BOS stands first where the template
    prints it, or else where the model adds it.

    Args:
        engine: tokenizes. text: JSONL. context: most tokens fed.
        template: the Jinja template (the model's own or another), or None where there is none.
        corpus: number of the text within the run. name: the text's name, for messages.

    Raises:
        CorpusError: no template, a broken one, one that rewrites earlier turns; a line that is no
            conversation; a tokenizer that changes the text; nothing to score in any conversation.
    """
    vocabulary = engine.vocabulary
    compiled = engine_template(engine, template)
    aligner = _Aligner(engine)
    windows: list[Window] = []
    count = cut = scored_tokens = 0
    for count, conversation in enumerate(read_conversations(text, name), 1):
        where = f"line {conversation.line} of '{name or 'the text'}'"
        rendered, spans = _spans(compiled, conversation, where)
        tokens = engine.tokenize(rendered, special=True)
        starts = aligner.starts(tokens, rendered.encode(), where)
        inside = np.zeros(len(tokens), bool)
        for start, end in spans:
            low, high = (len(rendered[:place].encode()) for place in (start, end))
            inside |= (starts >= low) & (starts < high)
        if vocabulary.add_bos and (len(tokens) == 0 or tokens[0] != vocabulary.bos):
            tokens = np.concatenate([np.array([vocabulary.bos], np.int32), tokens])
            inside = np.concatenate([[False], inside])
        cut += len(tokens) - 1 > context
        scored = inside[1 : context + 1]  # position i is scored on token i + 1
        if not scored.any():
            continue
        scored_tokens += int(np.count_nonzero(scored))
        fed = tokens[:-1][:context]
        targets = tokens[1 : context + 1]
        windows.append(Window(fed, targets, scored, len(windows), corpus, count - 1, conversation.category))
    if not windows:
        raise CorpusError(
            f"nothing to score in '{name or 'the text'}'",
            expected=f"an assistant message that begins within {context} tokens",
            got=f"{count} conversations, {cut} of them longer than the context",
            remedy="give conversations with assistant messages, or a larger --ctx",
        )
    return ChatWindows(
        tuple(windows), ChatReport(count, len(windows), cut, count - len(windows), scored_tokens)
    )
