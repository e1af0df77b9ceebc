"""quantvane: a workbench for quantized language models.

How far a candidate lies from its reference (`compare`, `displacement`), which way its outcomes went (`flips`,
`direction`), λ_max of its output's Fisher information (`fisher`), a monitor of deployed models (`calibrate`,
`monitor`), with the command ``quantvane`` over the same verbs. Everything is loaded when first used: importing
the package loads no model library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantvane import direction, displacement, errors, fisher, monitor
    from quantvane.run.calibrate import CalibrateResult, calibrate
    from quantvane.run.compare import Comparison, compare
    from quantvane.run.flips import FlipsResult, flips
    from quantvane.run.noise import Noise, noise
    from quantvane.run.record import Recording, record

__all__ = [
    "CalibrateResult",
    "Comparison",
    "FlipsResult",
    "Noise",
    "Recording",
    "__version__",
    "calibrate",
    "compare",
    "direction",
    "displacement",
    "errors",
    "fisher",
    "flips",
    "monitor",
    "noise",
    "record",
]

__version__ = "0.1.0"

_ROOMS = {"direction", "displacement", "errors", "fisher", "monitor"}
_NAMES = {
    "CalibrateResult": "quantvane.run.calibrate",
    "Comparison": "quantvane.run.compare",
    "FlipsResult": "quantvane.run.flips",
    "Noise": "quantvane.run.noise",
    "Recording": "quantvane.run.record",
    "calibrate": "quantvane.run.calibrate",
    "compare": "quantvane.run.compare",
    "flips": "quantvane.run.flips",
    "noise": "quantvane.run.noise",
    "record": "quantvane.run.record",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"quantvane.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'quantvane' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
