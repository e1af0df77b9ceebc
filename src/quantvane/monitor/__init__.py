"""Watching a deployed model's output distribution, stream by stream, with a promised false-alarm rate.

Importing this room loads no model library: the proxy runs on it.
"""

from quantvane.monitor.calibration import Base, Calibration, Fingerprint, load_calibration
from quantvane.monitor.conformal import conformal_threshold, trajectories_needed
from quantvane.monitor.martingale import FleetMartingale
from quantvane.monitor.processors import LlamaCppMonitor, TransformersMonitor
from quantvane.monitor.records import Observation, Step, StreamSummary
from quantvane.monitor.statistic import Measured
from quantvane.monitor.stream import StreamMonitor, state_table

__all__ = [
    "Base",
    "Calibration",
    "Fingerprint",
    "FleetMartingale",
    "LlamaCppMonitor",
    "Measured",
    "Observation",
    "Step",
    "StreamMonitor",
    "StreamSummary",
    "TransformersMonitor",
    "conformal_threshold",
    "load_calibration",
    "state_table",
    "trajectories_needed",
]
