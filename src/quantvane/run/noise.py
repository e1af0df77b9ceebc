"""The noise floor of a model: itself against itself, with one setting changed at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantvane.engines.llamacpp import resolve_settings
from quantvane.engines.registry import engine_name
from quantvane.errors import SpecError
from quantvane.run.compare import Comparison, compare
from quantvane.run.local import OnEvent
from quantvane.spec import ModelSpec
from quantvane.store.atomic import write_json

__all__ = ["VARIATIONS", "Noise", "noise", "variations"]

# Changes that ought to change nothing but rounding, by the word --vary takes. "repeat" changes nothing at all.
VARIATIONS: dict[str, dict[str, tuple[Mapping[str, str], ...]]] = {
    "llamacpp": {
        "repeat": ({},),
        "threads": ({"n_threads": "1"},),
        "batch": ({"n_batch": "2048"},),
        "ubatch": ({"n_ubatch": "64"}, {"n_ubatch": "32"}),
        "flash_attn": ({"flash_attn": "on"}, {"flash_attn": "off"}),
        "cache_type_k": ({"cache_type_k": "f16", "cache_type_v": "f16"},),
        "repack": ({"repack": "false"},),
        "n_gpu_layers": ({"n_gpu_layers": "0"}, {"n_gpu_layers": "-1"}),
    },
    "hf": {
        "repeat": ({},),
        "threads": ({"n_threads": "1"},),
        "batch": ({"batch_tokens": "64"},),
        "attn": ({"attn": "eager"},),
        "dtype": ({"dtype": "bfloat16"}, {"dtype": "float16"}),
    },
    "fake": {"repeat": ({},), "jitter": ({"jitter": "1e-6"},)},
}
# What is varied when nothing is asked for: all that is no approximation by intent.
_DEFAULT = {
    "llamacpp": ("repeat", "threads", "batch", "ubatch", "flash_attn", "repack"),
    "hf": ("repeat", "threads", "batch", "attn"),
    "fake": ("repeat", "jitter"),
}


@dataclass(frozen=True, slots=True)
class Noise:
    """A measured noise floor.

    Attributes:
        comparison: the run; its candidates are the variations.
        document: the JSON document of ``noise --json``.
    """

    comparison: Comparison
    document: dict[str, Any]

    @property
    def kld_mean(self) -> float:
        """The floor: the largest mean KLD any of the variations gave, nats."""
        return float(self.document["floor"]["kld_mean"])


def variations(reference: ModelSpec, asked: Sequence[str], context: int = 512) -> list[tuple[str, ModelSpec]]:
    """(label, model spec) of every variation: words of `VARIATIONS`, or ``setting=value`` of one's own.

    Raises:
        SpecError: a word the engine does not know.
    """
    engine = engine_name(reference)
    known = VARIATIONS.get(engine, {})
    own = dict(reference.settings)
    if engine == "llamacpp":
        # Spelled out, so that a change of one setting does not choose another default for a second.
        resolved = resolve_settings(own, context)
        keys = {key for changes in known.values() for change in changes for key in change}
        own = {**own, **{key: str(resolved[key]).lower() for key in sorted(keys - {"n_threads"})}}
    out: list[tuple[str, ModelSpec]] = []
    for word in asked or _DEFAULT.get(engine, ()):
        if "=" in word:
            key, _, value = word.partition("=")
            changes: tuple[Mapping[str, str], ...] = ({key: value},)
        elif word in known:
            changes = known[word]
        else:
            raise SpecError(
                f"nothing called '{word}' can be varied on engine '{engine}'",
                expected="one of " + ", ".join(known) + ", or setting=value",
                got=word,
                remedy="correct --vary",
            )
        for change in changes:
            settings = {**own, **change}
            if change and settings == own:
                continue  # that is how the reference runs anyway
            label = ", ".join(f"{k}={v}" for k, v in change.items()) or "repeated"
            out.append((label, ModelSpec(reference.path, reference.engine, tuple(settings.items()))))
    return out


def noise(
    ref: str,
    *,
    text: Sequence[str] | str,
    vary: Sequence[str] = (),
    context: int = 512,
    chunks: int | None = 16,
    out: str | Path | None = None,
    settings: dict[str, str] | None = None,
    on_event: OnEvent = lambda event: None,
    **options: Any,
) -> Noise:
    """Measure a model against itself under changed settings and repeated runs.

    Args:
        ref: model spec. text, context, chunks, out, settings: as `quantvane.compare` takes them.
        vary: words of `VARIATIONS` or ``setting=value``; by default all that should only round otherwise.

    Raises:
        QuantvaneError: see `quantvane.errors`.
    """
    reference = ModelSpec.parse(ref).with_defaults(settings or {})
    chosen = variations(reference, vary, context)
    result = compare(
        reference.text,
        [spec.text for _, spec in chosen],
        text=text,
        context=context,
        chunks=chunks,
        out=out,
        on_event=on_event,
        floor_windows=0,
        **options,
    )
    rows = [
        {
            "changed": label,
            "kld": {key: entry["kld"][key] for key in ("mean", "p99", "max")},
            "top1_agreement": entry["top1_agreement"],
            "settings": entry["settings"],
        }
        for (label, _), entry in zip(chosen, result.summary["candidates"], strict=True)
    ]
    worst = max(rows, key=lambda row: row["kld"]["mean"]["value"] or 0.0)
    document = {
        "schema": 1,
        "protocol": result.summary["protocol"],
        "reference": result.summary["reference"],
        "floor": {
            "kld_mean": worst["kld"]["mean"]["value"],
            "how": f"the reference against itself, {worst['changed']}: the largest of {len(rows)} variations",
        },
        "variations": rows,
        "engine": result.summary["engine"],
        "versions": result.summary["versions"],
        "hardware": result.summary["hardware"],
    }
    write_json(result.out / "noise.json", document)
    return Noise(result, document)
