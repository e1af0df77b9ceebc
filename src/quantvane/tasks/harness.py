"""Tasks of lm-evaluation-harness: by name, from YAML or JSON files and directories, or made of local JSONL files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantvane.errors import CapabilityError, DataError, SpecError
from quantvane.tasks.local_tasks import local_configs

__all__ = ["HarnessTask", "load_tasks", "require_lm_eval"]

_FEWSHOT_SEED = 1234  # the harness's own default, so that prompts are those of its own runs


@dataclass(frozen=True, slots=True)
class HarnessTask:
    """A loaded task with all its requests.

    Attributes:
        name: the task's. task: the harness's object. metric, filter: what decides right or wrong.
        instances: requests by document number.
    """

    name: str
    task: Any
    metric: str
    filter: str
    instances: dict[int, list[Any]]


def require_lm_eval() -> None:
    """Raise CapabilityError where lm-eval is not installed; keep its messages off the terminal otherwise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import lm_eval.api.task  # noqa: F401 - whether it is there
    except ImportError as problem:
        raise CapabilityError(
            "running tasks needs lm-evaluation-harness",
            expected="the package lm-eval",
            got=str(problem),
            remedy='install quantvane[tasks]: pip install "quantvane[tasks]"',
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def load_tasks(
    specs: Sequence[str],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    metrics: dict[str, str] | None = None,
    filters: dict[str, str] | None = None,
    template: Callable[..., str] | None = None,
) -> list[HarnessTask]:
    """Load tasks and build their requests, prompts as the harness builds them.

    Args:
        specs: names known to the harness, ``.yaml``/``.json`` task files, ``.jsonl`` files (see `local_tasks`), or
            directories of these.
        limit: the first so many documents of each task.
        fewshot: number of examples in the prompt, for tasks that do not fix it at 0.
        metrics, filters: task → name, the task "" for all others; by default the task's first.
        template: makes the prompt's text of chat messages, see `EngineLM.apply_chat_template`; None for bare prompts.

    Raises:
        CapabilityError: lm-eval is not installed. SpecError: an unknown task, metric or filter.
        DataError: a task whose data cannot be had.
    """
    require_lm_eval()
    found: dict[str, Any] = {}
    for spec in specs:
        for name, task in _load(spec).items():
            if name in found:
                raise SpecError(
                    f"task '{name}' is given twice",
                    expected="every task once",
                    got=spec,
                    remedy="leave one of them out",
                )
            found[name] = task
    prepared = []
    for name, task in found.items():
        _build(name, task, limit, fewshot, template)
        prepared.append(_chosen(name, task, metrics or {}, filters or {}))
    return prepared


def _load(spec: str) -> dict[str, Any]:
    path = Path(spec)
    if path.is_dir():
        rows = sorted(path.glob("*.jsonl"))
        out: dict[str, Any] = {}
        for file in rows:
            out |= _load(str(file))
        yamls = [p for p in path.rglob("*.yaml") if not p.name.startswith("_")]
        if yamls:
            out |= _managed(None, path)
        if not out:
            raise SpecError(f"no tasks in '{spec}'", expected=".jsonl or .yaml files", got="none", remedy="check it")
        return out
    if path.suffix == ".jsonl":
        return {config["task"]: _configured(config) for config in local_configs(path)}
    if path.suffix == ".json" and path.is_file():
        try:
            config = json.loads(path.read_bytes())
        except ValueError as problem:
            raise DataError(
                f"'{spec}' is no task file", expected="a task configuration in JSON", got=str(problem), remedy="mend it"
            ) from None
        return {config.get("task", path.stem): _configured({"task": path.stem, **config})}
    return _managed(spec, path.parent if path.is_file() else None)


def _configured(config: dict[str, Any]) -> Any:
    from lm_eval.api.task import ConfigurableTask

    try:
        return ConfigurableTask(config=config)
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as problem:
        raise _unusable(str(config.get("task")), problem) from None


def _managed(spec: str | None, include: Path | None) -> dict[str, Any]:
    """Through the harness's task manager: one spec, or everything in a directory."""
    from lm_eval.tasks import TaskManager

    # Its own thousands of tasks are only indexed where a name calls for them: that takes seconds.
    by_name = spec is not None and include is None
    try:
        manager = TaskManager(include_path=str(include) if include else None, include_defaults=by_name)
        names = [spec] if spec is not None else list(manager.all_subtasks)
        loaded: dict[str, Any] = dict(manager.load(names)["tasks"])
    except KeyError:
        raise SpecError(
            f"no task is called '{spec}'",
            expected="a name that lm-eval knows, or a .yaml, .json or .jsonl file",
            got=str(spec),
            remedy="lm-eval ls tasks lists the names",
        ) from None
    except Exception as problem:  # a task's own code may raise anything while its data are fetched
        raise _unusable(spec or str(include), problem) from problem
    return loaded


def _unusable(name: str, problem: Exception) -> DataError:
    return DataError(
        f"task '{name}' cannot be loaded",
        expected="a task configuration of lm-eval whose data can be had",
        got=f"{type(problem).__name__}: {str(problem)[:300]}",
        remedy="check the task file; without a network its data must be local (dataset_path: json)",
    )


def _build(
    name: str, task: Any, limit: int | None, fewshot: int | None, template: Callable[..., str] | None
) -> None:
    own = task.get_config("num_fewshot")
    if fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    try:
        task.build_all_requests(limit=limit, apply_chat_template=template is not None, chat_template=template)
    except ValueError as problem:
        raise _unusable(name, problem) from None


def _chosen(name: str, task: Any, metrics: dict[str, str], filters: dict[str, str]) -> HarnessTask:
    instances: dict[int, list[Any]] = {}
    for instance in task.instances:
        instances.setdefault(instance.doc_id, []).append(instance)
    metric = _named("metric", name, list(task.aggregation()), metrics)
    chosen = _named("filter", name, [f.name for f in getattr(task, "_filters", [])] or ["none"], filters)
    return HarnessTask(name, task, metric, chosen, instances)


def _named(what: str, task: str, present: list[str], wanted: dict[str, str]) -> str:
    name = wanted.get(task, wanted.get("", present[0] if present else ""))
    if name not in present:
        raise SpecError(
            f"task '{task}' has no {what} '{name}'",
            expected=f"one of {', '.join(present)}",
            got=name,
            remedy=f"--{what} {task}=NAME",
        )
    return name
