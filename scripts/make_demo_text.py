"""Write the demo's text: passages sampled from the bundled model, and task lines made by this script.

    python scripts/make_demo_text.py [--model FILE] [--out FILE] [--bytes N]

Nothing in the text comes from anywhere else, so it can be shipped under the package's own licence. The model
is measured on text it might itself have written: fit for showing what the commands do, not for judging the
model. Seeds are fixed; another processor may round differently and so sample other words.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

from llama_cpp import Llama

ASSETS = Path(__file__).resolve().parent.parent / "src" / "quantvane" / "assets"
TEMPERATURE, TOP_K, CONTEXT = 0.8, 40, 512
PASSAGE_TOKENS = 460

# Empty stands for the beginning of a document alone.
OPENINGS = (
    "The rain had not ceased since the morning, and",
    "CHAPTER VII\n\nIn which",
    "“You are late,” said the old man,",
    "It was a custom in our village that",
    "The captain looked at the chart for some time before he answered.",
    "My dear sister,\n\nI write to you from",
    "Among the hills to the north there stood a house which",
    "She put down the candle and listened.",
    "Of all the trees in the garden,",
    "When the court had assembled, the judge",
    "The children ran down to the river, where",
    "There are three sorts of men who",
    "“I do not believe a word of it,” cried the doctor;",
    "",
)

# fmt: off
WORDS = (
    "anchor", "barrel", "basket", "blanket", "bridge", "button", "carpet", "castle", "chimney",
    "copper", "cotton", "corner", "cradle", "curtain", "desert", "dinner", "donkey", "feather",
    "field", "finger", "flower", "forest", "garden", "hammer", "harbour", "helmet", "island",
    "jacket", "kettle", "ladder", "lantern", "letter", "market", "meadow", "mirror", "needle",
    "orchard", "paper", "pepper", "pillow", "planet", "pocket", "ribbon", "river", "saddle",
    "shadow", "shovel", "silver", "spider", "stable", "table", "temple", "thunder", "timber",
    "tunnel", "valley", "velvet", "window", "winter", "yellow",
)
# fmt: on


def _number(rng: random.Random) -> int:
    return rng.randrange(10 ** rng.choice((1, 2, 2, 3)))


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(low, high))


def _add(rng: random.Random) -> str:
    a, b = _number(rng), _number(rng)
    return f"{a}+{b}={a + b}"


def _subtract(rng: random.Random) -> str:
    b, a = sorted((_number(rng), _number(rng)))
    return f"{a}-{b}={a - b}"


def _multiply(rng: random.Random) -> str:
    a, b = rng.randrange(2, 100), rng.randrange(2, 13)
    return f"{a}*{b}={a * b}"


def _modulo(rng: random.Random) -> str:
    a, b = _number(rng), rng.randrange(2, 10)
    return f"{a} mod {b}={a % b}"


def _max(rng: random.Random) -> str:
    numbers = rng.sample(range(1000), rng.randint(3, 6))
    return f"max {' '.join(map(str, numbers))} = {max(numbers)}"


def _sort(rng: random.Random) -> str:
    numbers = rng.sample(range(100), rng.randint(3, 5))
    return f"sort {' '.join(map(str, numbers))} = {' '.join(map(str, sorted(numbers)))}"


def _reverse(rng: random.Random) -> str:
    words = _words(rng, 2, 5)
    return f"reverse {' '.join(words)} = {' '.join(reversed(words))}"


def _backwards(rng: random.Random) -> str:
    letters = rng.choices("abcdefghiklmnoprstuwy", k=rng.randint(3, 7))
    return f"backwards {'-'.join(letters)} = {'-'.join(reversed(letters))}"


def _count(rng: random.Random) -> str:
    words = rng.choices(_words(rng, 3, 4), k=rng.randint(4, 8))
    return f"count {words[0]} in {' '.join(words)} = {words.count(words[0])}"


def _last(rng: random.Random) -> str:
    words = _words(rng, 3, 6)
    return f"last {' '.join(words)} = {words[-1]}"


def _compare(rng: random.Random) -> str:
    a, b = rng.sample(range(1000), 2)
    return f"is {a} more than {b} ? {'yes' if a > b else 'no'}"


def _balanced(marks: list[str]) -> bool:
    open_marks: list[str] = []
    for mark in marks:
        if mark in "([":
            open_marks.append(mark)
        elif not open_marks or open_marks.pop() + mark not in ("()", "[]"):
            return False
    return not open_marks


def _brackets(rng: random.Random) -> str:
    marks: list[str] = []
    for _ in range(rng.randint(2, 5)):  # a balanced row, grown from the inside or at its end …
        left, right = rng.choice(("()", "[]"))
        marks = [left, *marks, right] if rng.random() < 0.5 else [*marks, left, right]
    if rng.random() < 0.5:  # … and half of the time one mark is spoiled
        at = rng.randrange(len(marks))
        marks[at] = rng.choice([mark for mark in "()[]" if mark != marks[at]])
    return f"balanced {' '.join(marks)} ? {'yes' if _balanced(marks) else 'no'}"


# fmt: off
TASKS: tuple[Callable[[random.Random], str], ...] = (
    _add, _subtract, _multiply, _modulo, _max, _sort,
    _reverse, _backwards, _count, _last, _compare, _brackets,
)
# fmt: on


def sample_passage(model: Llama, opening: str, seed: int) -> str:
    """One passage: the opening and what the model makes of it, cut after its last whole sentence."""
    tokens = [model.token_bos(), *model.tokenize(opening.encode(), add_bos=False)]
    model.set_seed(seed)
    model.reset()
    drawn: list[int] = []
    for token in model.generate(
        tokens, temp=TEMPERATURE, top_k=TOP_K, top_p=1.0, min_p=0.0, repeat_penalty=1.0
    ):
        if token == model.token_eos() or len(drawn) == PASSAGE_TOKENS:
            break
        drawn.append(token)
    text = opening + b"".join(model.detokenize([token]) for token in drawn).decode(errors="ignore")
    # "? " ends no sentence here: "balanced ( ) ? yes" is a task line
    marks = (". ", "! ", ".”", "!”", "?”", '."', '?"', "\n")
    end = max(text.rfind(mark) + len(mark) for mark in marks if mark in text) if "\n" in text else len(text)
    return text[: max(end, len(opening))].strip()


def make_text(model: Llama, size: int) -> str:
    """Passages and groups of four to nine task lines in turn, until ``size`` bytes are reached."""
    rng = random.Random(20_260)
    parts: list[str] = []
    held = 0
    for number in range(10_000):
        passage = sample_passage(model, OPENINGS[number % len(OPENINGS)], seed=3000 + number)
        lines = "\n".join(rng.choice(TASKS)(rng) for _ in range(rng.randint(4, 9)))
        for part in (passage, lines):
            parts.append(part)
            held += len(part.encode()) + 2
        if held >= size:
            break
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=ASSETS / "lm10m-f16.gguf")
    parser.add_argument("--out", type=Path, default=ASSETS / "demo.txt")
    parser.add_argument("--bytes", type=int, default=70_000, help="least size of the text")
    given = parser.parse_args()
    model = Llama(str(given.model), n_ctx=CONTEXT, n_gpu_layers=0, verbose=False)
    text = make_text(model, given.bytes)
    given.out.write_text(text, encoding="utf-8", newline="\n")
    print(f"{given.out}: {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
