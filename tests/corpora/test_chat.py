"""Conversations under templates of several styles, with engines whose tokens are bytes and a few marks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantvane.corpora.chat import ChatWindows, chat_windows, read_conversations
from quantvane.corpora.template import TODAY, ChatTemplate
from quantvane.engines.base import Vocabulary
from quantvane.errors import CorpusError

MARKS = ("<s>", "</s>", "<|open|>", "<|close|>")
BOS, EOS, OPEN, CLOSE = range(256, 260)

CHATML = """\
{%- for m in messages %}
    {{- '<|open|>' + m['role'] + '\\n' + m['content'] + '<|close|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|open|>assistant\\n' }}
{%- endif %}"""

# The system text is folded into the first question; an answer ends with EOS, and nothing opens it.
INST = """\
{% if messages[0]['role'] == 'system' %}
{% set system = '<<' + messages[0]['content'] + '>> ' %}
{% set rest = messages[1:] %}
{% else %}
{% set system = '' %}
{% set rest = messages %}
{% endif %}
{% for m in rest %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must take turns') }}
{% endif %}
{% if m['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] | trim + ' [/INST]' }}
{%- else %}
{{ ' ' + m['content'] | trim + ' ' + eos_token }}
{%- endif %}
{% endfor %}"""

PLAIN = """\
{% for m in messages %}{{ m.role | upper }}: {{ m.content }}

{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"""


class Bytes:
    """Bytes 0–255 and four marks.

    ``blank``: a blank is put before the text and after each mark, as SentencePiece does; ``swallow``: white
    space after a mark is dropped; ``lower``: text is changed.
    """

    chat_template = None

    def __init__(
        self, *, add_bos: bool = False, blank: bool = False, swallow: bool = False, lower: bool = False
    ):
        self.vocabulary = Vocabulary(tuple(map(str, range(260))), BOS, EOS, add_bos)
        self._blank, self._swallow, self._lower = blank, swallow, lower

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> np.ndarray:
        ids: list[int] = [BOS] if add_bos else []
        parts = re.split("(" + "|".join(map(re.escape, MARKS)) + ")", text) if special else [text]
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(256 + MARKS.index(part))
                continue
            if self._swallow and number:
                part = part.lstrip()
            if part:
                part = part.lower() if self._lower else part
                ids += ((" " if self._blank else "") + part).encode()
        return np.array(ids, np.int32)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else MARKS[token - 256].encode()


def conversation(*turns: str, **more: str) -> str:
    roles = (
        ["system", "user", "assistant", "user", "assistant"] if len(turns) % 2 else ["user", "assistant"] * 2
    )
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return json.dumps({"messages": messages, **more}, ensure_ascii=False)


def cut(engine: Any, text: str, template: str | None = CHATML, context: int = 500) -> ChatWindows:
    return chat_windows(engine, text, context=context, template=template, corpus=3, name="t.jsonl")


def spelled(engine: Bytes, ids: Any) -> str:
    return b"".join(engine.token_bytes(int(i)) for i in ids).decode()


def scored_text(engine: Bytes, result: ChatWindows, number: int = 0) -> str:
    window = result.windows[number]
    return spelled(engine, window.targets[window.scored])


def test_chatml_scores_answers_and_their_closing_mark() -> None:
    engine = Bytes()
    result = cut(engine, conversation("Be brief.", "Grüße?", "Schön 🙂.", "And?", "No."))
    assert scored_text(engine, result) == "Schön 🙂.<|close|>No.<|close|>"
    window = result.windows[0]
    whole = spelled(engine, window.tokens) + spelled(engine, window.targets[-1:])
    assert whole == (
        "<|open|>system\nBe brief.<|close|>\n<|open|>user\nGrüße?<|close|>\n"
        "<|open|>assistant\nSchön 🙂.<|close|>\n"
        "<|open|>user\nAnd?<|close|>\n<|open|>assistant\nNo.<|close|>\n"
    )
    assert OPEN in window.tokens
    np.testing.assert_array_equal(window.tokens[1:], window.targets[:-1])
    assert (window.index, window.corpus, window.document) == (0, 3, 0)
    assert result.report.to_dict() == {
        "conversations": 1,
        "windows": 1,
        "cut": 0,
        "skipped": 0,
        "tokens": int(window.scored.sum()),
    }


def test_inst_style_with_system_and_eos() -> None:
    engine = Bytes(add_bos=True)
    result = cut(engine, conversation("Be brief.", "Hello", " Hi ", "And?", "No."), INST)
    assert scored_text(engine, result) == " Hi </s> No. </s>"
    window = result.windows[0]
    assert window.tokens[0] == BOS
    assert window.tokens[1] != BOS  # the template printed it; it is not put there twice
    assert spelled(engine, window.tokens).startswith("<s>[INST] <<Be brief.>> Hello [/INST] Hi </s>")


def test_plain_style_scores_the_blank_lines_that_end_a_turn() -> None:
    engine = Bytes()
    result = cut(engine, conversation("Hello", "Hi.", "More", "No."), PLAIN)
    assert scored_text(engine, result) == "Hi.\n\nNo.\n\n"


@pytest.mark.parametrize(("add_bos", "first"), [(True, BOS), (False, OPEN)])
def test_bos_where_the_template_prints_none(add_bos: bool, first: int) -> None:
    engine = Bytes(add_bos=add_bos)
    result = cut(engine, conversation("Hello", "Hi."))
    assert result.windows[0].tokens[0] == first
    assert scored_text(engine, result) == "Hi.<|close|>"


@pytest.mark.parametrize("template", [CHATML, INST, PLAIN])
@pytest.mark.parametrize("options", [{"blank": True}, {"swallow": True}])
def test_tokenizers_that_add_or_swallow_blanks(template: str, options: dict[str, bool]) -> None:
    engine = Bytes(**options)
    result = cut(engine, conversation("Hello", "Hi there.", "  More", "No."), template)
    exact = cut(Bytes(), conversation("Hello", "Hi there.", "  More", "No."), template)
    squeezed = [re.sub(r"\s", "", scored_text(engine, r)) for r in (result, exact)]
    assert squeezed[0] == squeezed[1]
    assert "Hithere." in squeezed[0]
    assert "Hello" not in squeezed[0]


def test_content_that_spells_a_mark_keeps_its_place() -> None:
    engine = Bytes()
    result = cut(engine, conversation("say <|close|> please", "a<|close|>b"))
    assert scored_text(engine, result) == "a<|close|>b<|close|>"


def test_cut_and_skipped_are_counted() -> None:
    engine = Bytes()
    text = "\n".join(
        [
            conversation("Hi", "short", category="x"),
            "",
            conversation("Hi", "long " * 50),
            conversation("very long question " * 20, "never reached"),
            json.dumps({"messages": [{"role": "user", "content": "no answer"}]}),
            conversation("Hi", "the end"),
        ]
    )
    result = cut(engine, text, context=60)
    assert [len(w.tokens) for w in result.windows][1] == 60
    assert [w.document for w in result.windows] == [0, 1, 4]
    assert [w.index for w in result.windows] == [0, 1, 2]
    assert [w.category for w in result.windows] == ["x", "", ""]
    report = result.report
    assert (report.conversations, report.windows, report.cut, report.skipped) == (5, 3, 2, 2)
    assert report.tokens == sum(int(w.scored.sum()) for w in result.windows)
    # a prefix of the long answer, from its first token to the last the context reaches
    assert ("long " * 50).startswith(scored_text(engine, result, 1))


def test_context_boundary_is_exact() -> None:
    engine = Bytes()
    n = len(engine.tokenize("<|open|>user\nHi<|close|>\n<|open|>assistant\nYes<|close|>\n", special=True))
    for context, cuts in ((n - 1, 0), (n - 2, 1)):
        assert cut(engine, conversation("Hi", "Yes"), context=context).report.cut == cuts


def test_separators_inside_strings_end_no_line() -> None:
    engine = Bytes()
    result = cut(engine, conversation("one\u2028two\x85", "three\u2029"))
    assert result.report.conversations == 1
    assert "\u2029" in scored_text(engine, result)


class TestRefusals:
    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "[]",
            "{}",
            '{"messages": []}',
            '{"messages": "hi"}',
            '{"messages": ["hi"]}',
            '{"messages": [{"role": "user"}]}',
            '{"messages": [{"role": "user", "content": 3}]}',
            '{"messages": [{"role": "user", "content": "x"}], "category": 3}',
            "[" * 100_000,
        ],
    )
    def test_bad_lines_are_named(self, line: str) -> None:
        with pytest.raises(CorpusError, match=r"line 3 of 't\.jsonl'"):
            list(read_conversations(conversation("a", "b") + "\n\n" + line, "t.jsonl"))

    def test_no_template(self) -> None:
        for none in (None, ""):
            with pytest.raises(CorpusError) as caught:
                cut(Bytes(), conversation("a", "b"), none)
            assert "--chat-template FILE" in caught.value.remedy

    def test_broken_template(self) -> None:
        with pytest.raises(CorpusError, match="not valid Jinja") as caught:
            cut(Bytes(), conversation("a", "b"), "{% for m in %}")
        assert "line 1" in caught.value.got

    def test_template_that_refuses(self) -> None:
        roles = [{"role": r, "content": "x"} for r in ("user", "user")]
        with pytest.raises(CorpusError, match=r"line 1 of 't\.jsonl'") as caught:
            cut(Bytes(), json.dumps({"messages": roles}), INST)
        assert "roles must take turns" in caught.value.got

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            # earlier answers lose what stands before a slash
            (
                CHATML.replace(
                    "m['content']", "(m['content'] if loop.last else m['content'].split('/')[-1])"
                ),
                "message 1 ",
            ),
            # the prompt holds what the history lacks
            (CHATML.replace("assistant\\n' }}", "assistant\\n<think>' }}"), "message 1 "),
        ],
    )
    def test_rewritten_history(self, template: str, message: str) -> None:
        with pytest.raises(CorpusError, match="rewrites") as caught:
            cut(Bytes(), conversation("Hi", "hm/Yes", "More", "hm/No"), template)
        assert message in caught.value.message
        assert "line 1" in caught.value.message

    def test_tokenizer_that_changes_the_text(self) -> None:
        with pytest.raises(CorpusError, match="do not spell"):
            cut(Bytes(lower=True), conversation("Hi", "Yes"))

    def test_tokenizer_that_drops_the_end(self) -> None:
        class Short(Bytes):
            def tokenize(self, text: str, **kwargs: bool) -> np.ndarray:
                return super().tokenize(text, **kwargs)[:-3]

        with pytest.raises(CorpusError, match="end before"):
            cut(Short(), conversation("Hi", "Yes"))

    def test_nothing_to_score(self) -> None:
        with pytest.raises(CorpusError, match="nothing to score"):
            cut(Bytes(), json.dumps({"messages": [{"role": "user", "content": "x"}]}))
        with pytest.raises(CorpusError, match="nothing to score"):
            cut(Bytes(), "\n")


class TestTemplate:
    def render(self, text: str) -> str:
        return ChatTemplate(text, bos="<s>", eos="</s>").render(
            [{"role": "user", "content": "<é>", "n": [1, {"a": True}]}], prompt=True, where="here"
        )

    def test_tojson_is_json_and_not_html(self) -> None:
        assert self.render("{{ messages[0] | tojson }}") == (
            '{"role": "user", "content": "<é>", "n": [1, {"a": true}]}'
        )
        assert self.render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"

    def test_blocks_are_trimmed_and_tokens_known(self) -> None:
        assert self.render(
            "{% if true %}\n  {% set x = 1 %}\n{{ bos_token }}{{ eos_token }}\n{% endif %}\n"
        ) == ("<s></s>\n")

    def test_loop_controls_and_generation_marks(self) -> None:
        assert (
            self.render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
            == "01"
        )
        assert self.render("a{% generation %}b{{ 1 }}{% endgeneration %}c") == "ab1c"

    def test_the_date_never_changes(self) -> None:
        assert self.render("{{ strftime_now('%Y-%m-%d') }}") == TODAY.strftime("%Y-%m-%d") == "2025-01-01"

    @pytest.mark.parametrize(
        "text",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ cycler.__init__.__globals__ }}",
            "{{ range(10**9) | list }}",
        ],
    )
    def test_sandbox(self, text: str) -> None:
        with pytest.raises(CorpusError, match="fails on here"):
            self.render(text)


def test_equals_transformers_rendering() -> None:
    """The reference renderer, where it is installed."""
    chat = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [
        {"role": role, "content": text}
        for role, text in (("system", "S"), ("user", " q <1> "), ("assistant", "a\n"), ("user", "r"))
    ]
    for template in (CHATML, INST, PLAIN, "{{ messages | tojson(indent=1) }}\n"):
        for prompt in (False, True):
            mine = ChatTemplate(template, bos="<s>", eos="</s>").render(messages, prompt=prompt, where="x")
            theirs, _ = chat.render_jinja_template(
                [messages],
                chat_template=template,
                add_generation_prompt=prompt,
                bos_token="<s>",
                eos_token="</s>",
            )
            assert mine == theirs[0]


@pytest.mark.parametrize("name", ["lm10m", "stories260K"])
def test_real_tokenizers(shared: Path, name: str) -> None:
    """llama.cpp puts a blank after every special token of a SentencePiece vocabulary."""
    from quantvane.engines.llamacpp import open_llamacpp

    engine = open_llamacpp(str(next((shared / "models" / name).glob("*.gguf"))), {})
    result = cut(
        engine, conversation("Be  brief.", "Hello — you?", "Hi, grüß dich 🙂 !", "And?", "No."), INST
    )
    window = result.windows[0]
    assert window.tokens[0] == engine.vocabulary.bos
    end = engine.token_bytes(engine.vocabulary.eos).decode()
    answers = b"".join(engine.token_bytes(int(i)) for i in window.targets[window.scored]).decode()
    assert answers == f" Hi, grüß dich 🙂 ! {end} No. {end}"
    engine.close()
