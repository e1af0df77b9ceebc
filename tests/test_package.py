"""The public surface, and what importing it loads."""

from __future__ import annotations

import json
import subprocess
import sys

import quantvane
from quantvane import errors

HEAVY = {"torch", "llama_cpp", "transformers", "ray", "pandas", "numba", "altair", "gguf"}


def _loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    assert not _loaded_by("import quantvane") & (HEAVY | {"numpy", "pyarrow"})


def test_listing_the_commands_loads_no_model_library():
    code = "from quantvane.cli.app import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not _loaded_by(code) & {"torch", "llama_cpp", "transformers", "numba", "altair"}


def test_the_registry_names_engines_without_loading_them():
    assert not _loaded_by("import quantvane.engines.registry") & {"torch", "llama_cpp", "transformers"}


def test_public_names():
    assert quantvane.__all__ == sorted(quantvane.__all__)
    for name in quantvane.__all__:
        assert getattr(quantvane, name) is not None
    assert callable(quantvane.compare)
    assert callable(quantvane.displacement.token_metrics)
    assert callable(quantvane.displacement.kld_bounds_topk)
    assert callable(quantvane.fisher.lambda_max)
    assert callable(quantvane.monitor.conformal_threshold)


def test_a_verb_keeps_its_name_beside_the_room_of_that_name():
    code = "import quantvane.choose.verdicts, quantvane; from quantvane.choose.pareto import pareto_front; "
    run = subprocess.run(
        [sys.executable, "-c", code + "print(quantvane.choose.__module__, callable(quantvane.bench))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["quantvane.run.choose", "True"]


def test_the_error_tree():
    def tree(root: type) -> dict:
        return {child.__name__: tree(child) for child in root.__subclasses__() if child.__module__ == errors.__name__}

    assert tree(errors.QuantvaneError) == {
        "InputError": {
            "SpecError": {}, "ModelFileError": {}, "CorpusError": {}, "TokenizerMismatchError": {},
            "ProtocolMismatchError": {}, "TraceError": {}, "DataError": {}, "CapabilityError": {}, "OutputError": {},
        },
        "RunError": {"EngineError": {}, "EngineCrashError": {}},
    }  # fmt: skip
    assert errors.SpecError("x").exit_status == 2
    assert errors.EngineCrashError("x").exit_status == 3


def test_errors_survive_a_process_boundary():
    first = errors.CorpusError("short", expected="512", got="3", remedy="longer")
    second = errors.from_dict(first.to_dict())
    assert type(second) is errors.CorpusError
    assert second.to_dict() == first.to_dict()
    assert "expected: 512" in str(second)
    assert type(errors.from_dict({"kind": "Unheard", "message": "m"})) is errors.RunError
