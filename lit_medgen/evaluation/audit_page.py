"""The page of an audit: what was found in each representation, what the audit itself finds, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_medgen.evaluation.markdown import table

SURE = 0.01
"""More copies than chance makes in one of so many audits are called found."""
RECALL = 0.95
"""Share of planted altered copies below which an audit says that it may miss some."""
NO_PROOF = "This is no proof that nothing of a patient can be learned from these images or the model."


def as_markdown(report: Mapping[str, Any], shown: bool) -> str:
    """The report as a page; `shown` says whether the pairs are a figure beside it."""
    parts = [
        [f"# Audit of copies: {report['source']}"],
        [f"**Note**: {note}" for note in report.get("notes", ())],
        _facts(report),
        ["## Copies"],
        _copies(report["copies"]),
        _explanation(report),
        ["![likeness](likeness.png)"],
        ["## What the audit itself finds"],
        _self_test(report),
        ["## Membership by loss"],
        _membership(report["membership"]),
        ["## Nearest pairs"],
        _nearest(report),
        ["![pairs](pairs.png)", "", "The figure shows training people: keep it as you keep their scans."] * shown,
        ["## Verdict"],
        [report["verdict"]],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _facts(report: Mapping[str, Any]) -> list[str]:
    people, images = report["people"], report["images"]
    return [
        f"* Samples: {report['num_samples']}, of {report['method'] or 'an unknown method'}.",
        f"* Training: {images['train']} images of {people['train']} people.",
        f"* Unseen (validation and test): {images['unseen']} images of {people['unseen']} people.",
        f"* Data: {report['data'][:12]} (digest).",
    ]


def _copies(copies: Mapping[str, Any]) -> list[str]:
    """A row for each quantity, a column for each representation."""
    rows: list[list[Any]] = [
        ["likeness above which an image is called a copy", *(of["threshold"] for of in copies.values())],
        ["false alarms: unseen people above it", *(_share(of["false_alarms"]) for of in copies.values())],
        ["samples copied", *(_share(of["copied"]) for of in copies.values())],
        ["p, if samples were as unseen people", *(of["copied"]["chance"] for of in copies.values())],
        ["samples as like as planted copies", *(_planted(of) for of in copies.values())],
        ["training people leaked", *(_share(of["leaked"]) for of in copies.values())],
        ["the same of equal pools: samples", *(_pool(of, "samples") for of in copies.values())],
        ["the same of equal pools: unseen people", *(_pool(of, "unseen") for of in copies.values())],
        ["C_T", *(f"{of['c_t']['value']:.2f} ({_cells(of)})" for of in copies.values())],
        ["median likeness: samples", *(of["median"]["samples"] for of in copies.values())],
        ["median likeness: unseen people", *(of["median"]["unseen"] for of in copies.values())],
    ]
    return table(["", *copies], rows)


def _planted(of: Mapping[str, Any]) -> str:
    row = of["as_planted"]
    return f"{row['hits']} (above {row['level']:.3f})" if row else "cannot be told from unseen people"


def _cells(of: Mapping[str, Any]) -> str:
    return f"{of['c_t']['cells']} cell{'s' if of['c_t']['cells'] > 1 else ''}"


def _pool(of: Mapping[str, Any], name: str) -> str:
    row = of["leaked_of_equal_pools"]
    return f"{100 * row[name]:.2f} % (of {row['pool']} images)"


def _share(row: Mapping[str, Any]) -> str:
    """A share in per cent with its interval."""
    low, high = (100 * end for end in row["ci95"])
    return f"{100 * row['value']:.1f} % ({low:.1f} to {high:.1f})"


def _explanation(report: Mapping[str, Any]) -> list[str]:
    return [
        "* voxels: Pearson correlation of the band-passed images. embedding: learned from the training images, to see "
        "what turning, moving, noise and gamma do not change. Both: the highest over flips and small rotations.",
        "* The threshold comes from unseen people against the same training images, by people; false alarms are how "
        "many more unseen people would lie above it, and how surely that is known.",
        "* As like as planted copies: at least as like a training image as 19 of 20 of the altered copies below, where "
        "no unseen person's image is.",
        "* leaked: training people of whom some sample is a copy. More samples hit more people by chance, so the same "
        "share is given of equally many samples and unseen people, one image each.",
        "* C_T: below -3, samples lie nearer to training images than unseen people do; above 3, further away.",
    ]


def _self_test(report: Mapping[str, Any]) -> list[str]:
    rows = [[name, *(_share(row) for row in of.values())] for name, of in report["self_test"].items()]
    num = next(iter(report["self_test"]["verbatim"].values()))["num"]
    return [
        f"Images of {num} training people, one each, went the same way as samples: the share that was found, above the "
        "threshold and of the right person.",
        "",
        *table(["planted copies", *report["copies"]], rows),
    ]


def _membership(found: Mapping[str, Any] | None) -> list[str]:
    """Whether losses tell training people from unseen ones."""
    if found is None:
        return ["Not asked for."]
    if "why_not" in found:
        return [f"Not measured: {found['why_not']}."]
    rows = [
        ["area under the ROC curve", found["auc"]["value"], found["auc"]["ci95"]],
        ["found, at 1 % false positives", found["tpr"]["value"], found["tpr"]["ci95"]],
    ]
    return [
        f"{found['of']}; {found['people'][0]} training people against {found['people'][1]} unseen ones.",
        "",
        *table(["", "value", "95 % interval"], rows),
        "",
        "An area of 0.5 means that the loss tells nothing. With fewer than 100 unseen people, 1 % of them is nobody.",
    ]


def _nearest(report: Mapping[str, Any]) -> list[str]:
    names = list(report["copies"])
    head = ["sample", *(f"{name}: training person, likeness" for name in names)]
    rows = [[row["sample"], *(_match(row[name]) for name in names)] for row in report["nearest"]]
    return table(head, rows)


def _match(row: Mapping[str, Any]) -> str:
    return f"{row['training_person']}, {row['likeness']:.3f}{' (copy)' if row['copy'] else ''}"


def verdict(report: Mapping[str, Any]) -> str:
    """Whether there are more copies than chance makes, and whether the audit would have found them."""
    found = [
        name
        for name, of in report["copies"].items()
        if of["copied"]["chance"] < SURE or (of["as_planted"] or {}).get("hits")
    ]
    words = [f"{_number(report, name)} by {name}" for name in found or report["copies"]]
    if found:
        said = f"Copies found: {'; '.join(words)}."
    else:
        said = f"No more copies found at these thresholds than unseen people make: {'; '.join(words)}."
    recalls = [max(row["value"] for row in of.values()) for of in report["self_test"].values()]
    if min(recalls) < RECALL:
        missed = [name for name, recall in zip(report["self_test"], recalls, strict=True) if recall < RECALL]
        said += (
            f" The audit may miss copies: of those it planted itself ({', '.join(missed)}) it found {min(recalls):.0%}."
        )
    auc = (report["membership"] or {}).get("auc")
    if auc and auc["ci95"][0] > 0.5:
        said += f" Losses tell training people from unseen ones: area {auc['value']:.2f}."
    return f"{said} {NO_PROOF}"


def _number(report: Mapping[str, Any], name: str) -> str:
    copied, false_alarms = (report["copies"][name][key] for key in ("copied", "false_alarms"))
    planted = (report["copies"][name]["as_planted"] or {}).get("hits")
    as_like = f", {planted} as like as planted copies" if planted else ""
    return f"{copied['hits']} of {copied['num']} samples{as_like} (false alarms {100 * false_alarms['value']:.1f} %)"
