"""quantvane: a workbench and monitor for quantized language models.

How far a candidate lies from its reference (`compare`, `displacement`), which way its outcomes went (`bench`, `flips`,
`direction`), what can be concluded (`study`, `choose`), λ_max of its output's Fisher information (`fisher`), a monitor
of deployed models (`calibrate`, `monitor`), with the command ``quantvane`` over the same verbs. Everything is loaded
when first used: importing the package loads no model library.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantvane import direction, displacement, errors, fisher, monitor
    from quantvane.choose.verdicts import Choice
    from quantvane.run.bench import Bench, bench
    from quantvane.run.calibrate import CalibrateResult, calibrate
    from quantvane.run.choose import choose
    from quantvane.run.compare import Comparison, compare
    from quantvane.run.flips import FlipsResult, flips
    from quantvane.run.noise import Noise, noise
    from quantvane.run.record import Recording, record
    from quantvane.run.study import StudyResult, study

__all__ = [
    "Bench",
    "CalibrateResult",
    "Choice",
    "Comparison",
    "FlipsResult",
    "Noise",
    "Recording",
    "StudyResult",
    "__version__",
    "bench",
    "calibrate",
    "choose",
    "compare",
    "direction",
    "displacement",
    "errors",
    "fisher",
    "flips",
    "monitor",
    "noise",
    "record",
    "study",
]

__version__ = "0.1.0"

_ROOMS = {"direction", "displacement", "errors", "fisher", "monitor"}
_NAMES = {
    "Bench": "quantvane.run.bench",
    "CalibrateResult": "quantvane.run.calibrate",
    "Choice": "quantvane.choose.verdicts",
    "Comparison": "quantvane.run.compare",
    "FlipsResult": "quantvane.run.flips",
    "Noise": "quantvane.run.noise",
    "Recording": "quantvane.run.record",
    "StudyResult": "quantvane.run.study",
    "bench": "quantvane.run.bench",
    "calibrate": "quantvane.run.calibrate",
    "choose": "quantvane.run.choose",
    "compare": "quantvane.run.compare",
    "flips": "quantvane.run.flips",
    "noise": "quantvane.run.noise",
    "record": "quantvane.run.record",
    "study": "quantvane.run.study",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"quantvane.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'quantvane' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This module. A verb keeps its name where a room shares it: importing ``quantvane.choose.x`` binds no module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _NAMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
