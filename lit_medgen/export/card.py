"""The model card: what a model is, what it was trained on, how it scores, what is known of its copies, and its limits.

The form is that of model hubs: a YAML head, then Markdown. It says of people nothing but numbers and hashes, and where
the owner states nothing (licence, intended use, audit) that it is not stated.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lit_medgen import __version__
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.evaluation.markdown import table
from lit_medgen.evaluation.tables import MARKS, literal
from lit_medgen.sampling import FLAGS, WORDS
from lit_medgen.training.generator import Generator

NOT_STATED = "not stated"
DIGITS = 12
"""Of a hash that are shown."""


@dataclass(frozen=True)
class Stated:
    """What whoever exports a model says of it.

    Attributes:
        name: of the model.
        format: that it is written in.
        license: under which the weights are given away.
        intended_use: what the model is for.
        report: of `evaluate`; empty without one.
        audit: of `audit`; empty without one.
    """

    name: str
    format: str = "safetensors"
    license: str | None = None
    intended_use: str | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)

    def refuse_other_model(self, method: str, parameters: int) -> None:
        """InputError if a report is of another method than the model, or of a model of another size."""
        for option, of in (("report", self.report), ("audit", self.audit)):
            if of.get("method") not in (None, "", method):
                raise InputError(f"--{option}: a report of {of['method']}, but the checkpoint is of {method}.")
            if of.get("parameters") not in (None, parameters):
                raise InputError(
                    f"--{option}: a report of a model of {of['parameters']:,} parameters, but the checkpoint's has "
                    f"{parameters:,}; give the report of this one."
                )


def model_card(model: Any, stated: Stated, usage: Sequence[str] = ()) -> str:
    """The card of a trained method as Markdown.

    Args:
        model: a `Method` with its spec.
        stated: what is said of it.
        usage: lines on how it samples; as an exported folder unless given.
    """
    spec: DataSpec = model.needed_spec()
    parts = [
        [f"# {literal(stated.name)}"],
        [_first_line(model), "", *_facts(model)],
        ["## Data", "", *_data(model, spec, stated.report)],
        ["## Scores", "", *_scores(stated.report, spec)],
        ["## Audit of copies", "", *_audit(stated.audit)],
        ["## Licence and intended use", "", *_terms(stated)],
        ["## Limits", "", *_limits(model, spec)],
        ["## How to sample", "", *(usage or _usage(model, stated.name))],
    ]
    return _head(model, stated) + "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(model: Any, stated: Stated) -> str:
    """The YAML head that hubs read."""
    known = re.fullmatch(r"[A-Za-z][A-Za-z0-9.+-]*", stated.license or "unknown")
    head: dict[str, Any] = {"license": (stated.license or "unknown").lower() if known else "other"}
    if not known:
        head["license_name"] = stated.license
    head |= {"library_name": "monai" if stated.format == "bundle" else "lit_medgen"}
    if isinstance(model, Generator):
        head["pipeline_tag"] = "image-to-image" if "source" in model.required else "unconditional-image-generation"
    head["tags"] = ["medical", "lit_medgen", type(model).__name__]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"


def _first_line(model: Any) -> str:
    return (inspect.getdoc(type(model)) or type(model).__name__).partition("\n")[0]


def _facts(model: Any) -> Iterator[str]:
    yield f"* Method: {type(model).__name__}, of lit_medgen {__version__}; weights averaged over training."
    yield f"* Parameters: {model.num_parameters:,}, without what only training needs."
    for name, part in _built_on(model).items():
        num = sum(each.numel() for each in part.parameters())
        yield f"* Built on `{name}`, which lies within: {type(part).__name__}, {num:,} parameters."


def _built_on(model: Any) -> dict[str, Any]:
    """Name -> each frozen part that is there."""
    return {name: getattr(model, name) for name in model.frozen_parts if hasattr(model, name)}


def _data(model: Any, spec: DataSpec, report: Mapping[str, Any]) -> Iterator[str]:
    """What the images are like, and how people were divided."""
    section = (model.config or {}).get("data") or {}
    reader = str(section.get("class_path", "")).rpartition(".")[2]
    low, high = spec.intensity_window
    spacing = " x ".join(f"{each:.4g}" for each in spec.spacing_mm)
    yield f"* Images: {' x '.join(map(str, spec.size))} voxels of {spacing} mm; channels: {spec.channels}."
    yield f"* Orientation: {spec.orientation or 'unknown'}. Read by `{reader or 'a class of their own'}`."
    yield f"* Intensities: -1 and 1 stand for {low:g} and {high:g} ({spec.intensity_unit})."
    if spec.classes:
        yield f"* Classes of label maps: {literal('; '.join(spec.classes))}."
    for name, (least, largest) in spec.attributes.items():
        values = ", ".join(spec.category_names.get(name, ())) or f"{least:.4g} to {largest:.4g}"
        yield f"* {literal(name)} of the training people: {literal(values)}."
    yield ""
    counts = report.get("people") or {}
    rows = []
    for part, sha256 in spec.people.items():
        people, images = (counts.get(part) or [None, None])[:2] if _is_of(report, part, sha256) else (None, None)
        rows.append([part, f"`{sha256[:DIGITS]}`", people or NOT_STATED, images or NOT_STATED])
    yield from table(["part", "hash of its people", "people", "images that scores are of"], rows)


def _is_of(report: Mapping[str, Any], part: str, sha256: str) -> bool:
    """Whether a report may be of the people of a part that have this hash; one that does not say so may be."""
    people = (report.get("reference") or {}).get("people") or {}
    return not sha256 or sha256.startswith(str(people.get(part, "")))


def _scores(report: Mapping[str, Any], spec: DataSpec) -> Iterator[str]:
    """The scores of a report, each beside real against real and its interval."""
    if not report:
        yield f"Scores: {NOT_STATED}. `export --report FOLDER` shows those of a report of `evaluate`."
        return
    if not all(_is_of(report, part, sha256) for part, sha256 in spec.people.items()):
        yield "**The report is of other people than those that this model was divided by.**"
        yield ""
    if metrics := report.get("metrics"):
        shown = report.get("num_samples")
        yield f"{shown} samples against people of the test part, with 95 % intervals (jackknife over people):"
        yield ""
        yield from _table_of(metrics, "real_vs_real", "real vs real")
        yield ""
    if own := report.get("own"):
        yield "Scores that the method gives itself:"
        yield ""
        rows = [[literal(name), row.get("value"), row.get("ci95"), row.get("num")] for name, row in own.items()]
        yield from table(["score", "value", "95 % interval", "n"], rows)
        yield ""
    nulls = report.get("nulls") or {}
    if nulls:
        names = list(nulls)
        yield "The same of nulls, which a model must beat:"
        yield ""
        rows = [[literal(score), *(nulls[null].get(score) for null in names)] for score in nulls[names[0]]]
        yield from table(["score", *map(literal, names)], rows)


def _table_of(scores: Mapping[str, Any], floor: str, word: str) -> Iterator[str]:
    rows = [
        [f"{literal(name)} {MARKS.get(row.get('best'), '')}".strip()]
        + [row.get(key) for key in ("value", "ci95", floor)]
        for name, row in scores.items()
    ]
    yield from table(["score", "value", "95 % interval", word], rows)


def _audit(audit: Mapping[str, Any]) -> Iterator[str]:
    """What an audit found, by whatever it holds."""
    if not audit:
        yield "Not made, or not given: whether samples copy training people is not known."
        return
    for name, of in (audit.get("copies") or {}).items():
        yield f"* By {literal(name)}: share of samples that are copies {_share(of, 'copied')}; of training people who"
        yield f"  are in one {_share(of, 'leaked')}; of unseen people who count as copies {_share(of, 'false_alarms')}."
    for planted, found in (audit.get("self_test") or {}).items():
        recalls = "; ".join(f"{_share(found, name)} by {literal(name)}" for name in found)
        yield f"* Planted copies that it finds ({literal(planted)}): {recalls}."
    for name, row in (audit.get("membership") or {}).items():
        if isinstance(row, Mapping) and "value" in row:
            yield f"* Membership by loss, {literal(name)}: {_share({name: row}, name)}."


def _share(of: Mapping[str, Any], key: str) -> str:
    """A value with its interval, where there is one."""
    row = of.get(key)
    value = row.get("value") if isinstance(row, Mapping) else row
    if not isinstance(value, int | float):
        return NOT_STATED
    interval = row.get("ci95") if isinstance(row, Mapping) else None
    return f"{value:.4g}" + (f" (95 %: {interval[0]:.4g} to {interval[1]:.4g})" if interval else "")


def _terms(stated: Stated) -> Iterator[str]:
    for word, text in (("Licence of the weights", stated.license), ("Intended use", stated.intended_use)):
        yield f"* {word}: {literal(text) if text else f'{NOT_STATED}; ask whoever gave you this folder'}."
    yield "* Not a medical device. Nothing here was made or tested for use on patients."


def _limits(model: Any, spec: DataSpec) -> Iterator[str]:
    yield "* It has seen images like those above and nothing else, whatever scanner, organ or illness is wished for."
    if isinstance(model, Generator):
        yield "* Samples may copy training people. Look at the audit above, and make one of what you sample."
    if model.not_averaged():
        yield "* The weights include those of discriminators, which training alone needs; these have seen real people."
    if isinstance(model, Generator) and model.attributes:
        yield "* Attributes outside the ranges above are extrapolated; what is asked for need not be shown."
    if {"source", "image"}.intersection((*getattr(model, "required", ()), *getattr(model, "optional", ()))):
        yield "* What it makes from a patient's image shows that patient."
    yield "* Scores are of the data above; on other data they are not known."


def _usage(model: Any, name: str) -> Iterator[str]:
    """How an exported folder is used."""
    lines = [
        "```bash",
        f"python -m lit_medgen sample --ckpt_path {name} --num 4 --out samples{asked_by(model)}",
        "```",
        "",
        "```python",
        "import lit_medgen",
        "",
        f'model = lit_medgen.load("{name}")',
        "```",
        "",
        "`config.json` names the SHA-256 of the weights, which is compared whenever they are loaded. Nothing here is "
        "unpickled or run.",
    ]
    yield from lines if isinstance(model, Generator) else lines[4:]


def asked_by(model: Any) -> str:
    """Options of `sample` that a method cannot do without."""
    return "".join(f" {FLAGS[part]}" for part in getattr(model, "required", ()) if part in WORDS)
