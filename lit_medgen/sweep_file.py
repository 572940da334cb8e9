"""The sweep file of W&B: what it says, and the parameters of every run.

W&B refuses any key that it does not know, so nothing of ours stands in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_medgen.arguments import pairs, read_yaml
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.trust import refuse_untrusted

Verb = Literal["fit", "evaluate"]
MACROS = {"${env}", "${interpreter}", "${program}", "${args}"}


def read(file: Path) -> dict[str, Any]:
    """The content of a sweep file; InputError if the file is none."""
    if not file.is_file():
        raise MissingDataError(f"sweep: no file '{file}'; give a sweep file, e.g. configs/sweeps/blur_schedule.yaml.")
    content = read_yaml(file)
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict) or not content["parameters"]:
        raise InputError(f"{file}: no `parameters`; a sweep file has method, metric, command, parameters.")
    metric = content.get("metric") or {}
    if not isinstance(metric, dict) or metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise InputError(f"{file}: metric is {metric!r}; give name, and as goal minimize or maximize.")
    given = [(key, choice) for key, spec in content["parameters"].items() for choice in _texts(spec)]
    words = [str(word) for word in content.get("command") or []]
    given += [(option.removeprefix("--"), value) for option, value in pairs(words) if option.startswith("--")]
    refuse_untrusted([{key.rpartition(".")[2]: value} for key, value in given], file)
    if "--trust_config" in words:
        raise InputError(f"{file}: command has --trust_config, which is yours to give: after --, on the command line.")
    return content


def _texts(spec: Any) -> list[Any]:
    """What a parameter may become; of a file that is no sweep, whatever is there."""
    if not isinstance(spec, dict):
        return [spec]
    values = spec.get("values")
    return [value for name, value in spec.items() if name != "values"] + (
        values if isinstance(values, list) else [values]
    )


def command(content: Mapping[str, Any], file: Path) -> tuple[Verb, list[str]]:
    """The verb and its words, without the parameters; InputError if it is not a command of ours."""
    words = [str(word) for word in content.get("command") or []]
    unknown = [word for word in words if word.startswith("${") and word not in MACROS]
    module = [i for i, word in enumerate(words[:-1]) if (words[i - 1], word) == ("-m", "lit_medgen")]
    if unknown or not module or words.count("${args}") != 1:
        raise InputError(
            f"{file}: command is {' '.join(words) or 'missing'}; expected ${{env}} python -m lit_medgen fit ... "
            + (f"${{args}}, without {unknown[0]}." if unknown else "${args}.")
        )
    verb, *rest = [word for word in words[module[0] + 1 :] if word != "${args}"]
    if verb not in ("fit", "evaluate"):
        raise InputError(f"{file}: command runs {verb!r}; a sweep runs fit or evaluate.")
    return verb, rest  # type: ignore[return-value]


def expand(content: Mapping[str, Any], file: Path, num: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The parameters of every run: all combinations (grid), or `num` random ones (random)."""
    method, parameters = content.get("method"), content["parameters"]
    for key, spec in parameters.items():
        if not isinstance(spec, dict) or "parameters" in spec:
            raise InputError(f"{file}: parameters.{key}: give value, values or a distribution.")
    if method == "grid":
        choices = {key: _choices(key, spec, file) for key, spec in parameters.items()}
        runs = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
        return runs[: num or content.get("run_cap")]
    if method == "random":
        cap = num or content.get("run_cap")
        if not cap:
            raise InputError(f"{file}: a random sweep needs an end: run_cap in the file, or --num.")
        random = np.random.default_rng(seed)
        return [{key: _random_value(key, spec, random, file) for key, spec in parameters.items()} for _ in range(cap)]
    raise InputError(f"{file}: method is {method!r}; grid and random run here, others need `wandb sweep`.")


def run_names(content: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], file: Path) -> list[str]:
    """The name of every run: run_000, ..., or those of the file's `name`, if that has parameters in braces.

    A parameter is named by what follows its last dot, and stands for the first word of its value: of
    `name: cdpm_fold{fold}` and the fold "2 of 5", cdpm_fold2. InputError if two runs would have one name.
    """
    pattern = content.get("name")
    if not isinstance(pattern, str) or "{" not in pattern:
        return [f"run_{number:03d}" for number in range(len(runs))]
    values = [{key.rpartition(".")[2]: str(value).split()[0] for key, value in run.items()} for run in runs]
    try:
        found = [pattern.format(**each) for each in values]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in values[0])
        raise InputError(f"{file}: name is {pattern!r}; give a text with some of {known}.") from error
    if len(set(found)) < len(found) or not all(re.fullmatch(r"[\w.-]+", name) for name in found):
        raise InputError(
            f"{file}: name is {pattern!r}, which makes {', '.join(found[:3])}; give names that differ, of letters, "
            "digits, _, - and dots."
        )
    return found


def _choices(key: str, spec: Mapping[str, Any], file: Path) -> list[Any]:
    if "values" in spec:
        if not isinstance(spec["values"], list) or not spec["values"]:
            raise InputError(f"{file}: parameters.{key}: values is {spec['values']!r}; give a list.")
        return list(spec["values"])
    if "value" in spec:
        return [spec["value"]]
    raise InputError(f"{file}: parameters.{key}: a grid needs values or value.")


def _random_value(key: str, spec: Mapping[str, Any], random: np.random.Generator, file: Path) -> Any:
    """A random value of one of W&B's distributions."""
    if "values" in spec or "value" in spec:
        choices = _choices(key, spec, file)
        return choices[int(random.integers(len(choices)))]
    try:
        low, high = spec["min"], spec["max"]
    except KeyError as error:
        raise InputError(f"{file}: parameters.{key}: no {error}; give values, or min and max.") from error
    if not all(isinstance(bound, int | float) for bound in (low, high)) or low > high:
        raise InputError(f"{file}: parameters.{key}: min is {low!r} and max {high!r}; give numbers (1.0e-5, not 1e-5).")
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = spec.get("distribution", "int_uniform" if whole else "uniform")
    match distribution:
        case "int_uniform":
            return int(random.integers(low, high + 1))
        case "uniform":
            return float(random.uniform(low, high))
        case "log_uniform_values" if low > 0:
            return float(math.exp(random.uniform(math.log(low), math.log(high))))
    raise InputError(
        f"{file}: parameters.{key}: distribution is {distribution!r} from {low}; int_uniform, uniform and "
        "log_uniform_values above 0 run here, others need `wandb sweep`."
    )
