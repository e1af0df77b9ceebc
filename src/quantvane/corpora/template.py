"""Chat templates: the model's own Jinja text, rendered in a sandbox the way transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantvane.engines.base import Engine
from quantvane.errors import CorpusError

__all__ = ["TODAY", "ChatTemplate", "engine_template"]

# Some templates print today's date into the system message. A measurement must give the same tokens tomorrow.
TODAY = datetime(2025, 1, 1)


class _Generation(jinja2.ext.Extension):
    """``{% generation %} … {% endgeneration %}`` marks trainable text; here its body is simply printed."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which would change the prompt
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class ChatTemplate:
    """A compiled template.

    Args:
        text: the Jinja source. bos, eos: what ``bos_token`` and ``eos_token`` stand for.

    Raises:
        CorpusError: the source is no valid template.
    """

    def __init__(self, text: str, *, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        strftime_now: Callable[[str], str] = TODAY.strftime
        environment.globals["strftime_now"] = strftime_now
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as problem:
            raise CorpusError(
                "the chat template is not valid Jinja",
                expected="a template as in tokenizer_config.json or tokenizer.chat_template",
                got=f"line {problem.lineno}: {problem.message}",
                remedy="give a working template: --chat-template FILE",
            ) from None

    def render(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool, where: str) -> str:
        """The text of a conversation; ``prompt`` opens the assistant's next turn.

        Raises:
            CorpusError: the template refuses the messages, or fails on them; ``where`` names them.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=prompt, **self._tokens
            )
        except Exception as problem:  # a template is a program: it can fail in any way
            raise CorpusError(
                f"the chat template fails on {where}",
                expected="messages the template accepts (roles it knows, in the order it wants)",
                got=f"{type(problem).__name__}: {problem}",
                remedy="mend the conversation, or give another template: --chat-template FILE",
            ) from None


def engine_template(engine: Engine, text: str | None) -> ChatTemplate:
    """A template with a model's own BOS and end tokens.

    Args:
        text: the Jinja source, the model's own or another; None where there is none.

    Raises:
        CorpusError: no template, or not a valid one.
    """
    if not text:
        raise CorpusError(
            "the model has no chat template",
            expected="a template in the model's files, or one given",
            got="none",
            remedy="give one: --chat-template FILE",
        )
    vocabulary = engine.vocabulary
    bos, eos = (
        engine.token_bytes(token).decode(errors="replace") if token >= 0 else ""
        for token in (vocabulary.bos, vocabulary.eos)
    )
    return ChatTemplate(text, bos=bos, eos=eos)
