"""The page of a report: a table with a row for each score, what its columns are, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_medgen.evaluation.nulls import DEFINITIONS
from lit_medgen.evaluation.strips import strip_file


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    parts = [
        [f"# Evaluation of {report['source']}"],
        *[[f"**Warning**: {it}"] for it in report["warnings"]],
        _facts(report),
    ]
    if "metrics" in report:
        parts.append(_of_images(report))
    if report.get("agreement"):
        parts += _agreement(report["agreement"])
    if report.get("control"):
        parts += _control(report["control"])
    if report["own"]:
        own = [
            [name, _measured(row["value"]), row["ci95"], row["num"], row["of"]] for name, row in report["own"].items()
        ]
        parts.append(table(["the method's own score", "value", "95 % interval", "n", "of"], own))
    if report.get("plots"):
        parts.append([f"![{name}]({plot_file(name)})" for name in report["plots"]])
    if "note" in report:
        parts.append([report["note"]])
    if report.get("ranking"):
        parts += _ranking(report["ranking"])
    if "metrics" in report:
        parts.append(_explanation(report))
    return "\n\n".join("\n".join(part) for part in [*parts, ["## Verdict"], [report["verdict"]]]) + "\n"


def plot_file(name: str) -> str:
    """Where a plot of the method's own lies in the folder of a report."""
    return f"plots/{name}.png"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table; of cells, numbers have four digits and intervals are pairs."""
    lines = [columns, *([_cell(value) for value in row] for row in rows)]
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return [head, "|" + "---|" * len(columns), *body]


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(map(_cell, value))
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _measured(value: float | None) -> float | str:
    return "not measured" if value is None else value


def _facts(report: Mapping[str, Any]) -> list[str]:
    """What was evaluated, of which data, at what cost."""
    facts = [f"* Method: {report['method'] or 'unknown'}.", f"* Data: {report['data'][:12] or 'unknown'} (digest)."]
    if "num_samples" in report:
        (test, test_images), (train, train_images) = report["people"]["test"], report["people"]["train"]
        facts.append(
            f"* {report['num_samples']} samples; real people: the test split, {test} people with {test_images} images; "
            f"for floors and nulls {train} training people with {train_images} images. Audit: none."
        )
    if report["parameters"] is not None:
        facts.append(f"* Its networks have {report['parameters']:,} parameters, without what only training needs.")
    if report["network_evaluations"] is not None:
        facts.append(f"* A sample took {report['network_evaluations']:.4g} evaluations of its networks.")
    if report["seconds_per_image"] is not None:
        facts.append(f"* A sample took {report['seconds_per_image']:.3g} s, its file included.")
    return facts


def _of_images(report: Mapping[str, Any]) -> list[str]:
    """A row for each score of samples: against real images, then of pairs."""
    nulls, rows = report["nulls"], []
    for name, row in report["metrics"].items():
        floor = report["floors"][name]
        sets = "" if floor["sets"] == 1 else f"{floor['sets']} x "
        of_nulls = [scores[name] for scores in nulls.values()]
        counts = f"{row['num_samples']} vs {row['num_real']}"
        floor_cells = [row["real_vs_real"], f"{sets}{floor['images']} {floor['people']}"]
        rows.append([name, row["value"], row["ci95"], *floor_cells, *of_nulls, counts, row["features"]])
    for name, row in report.get("pairs", {}).items():
        other = [row["real_vs_real"], f"{row['num_others']} others"] if row.get("num_others") else ["", ""]
        rest = [*other, *[""] * len(nulls), row["num_pairs"], row["features"]]
        rows.append([f"{name}, of pairs", row["value"], row["ci95"], *rest])
        rows += [
            [f"{name}, of pairs: {baseline}", simple["value"], simple["ci95"], "", "", *rest[2:]]
            for baseline, simple in row.get("baselines", {}).items()
        ]
    columns = ["score", "samples", "95 % interval", "real vs real", "of images", *nulls, "n", "from"]
    return table(columns, rows)


def _agreement(agreement: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row for each score of what was asked for and what is shown, beside the same of real people."""
    keys = ("value", "ci95", "real", "real_ci95")
    rows = [
        [name, *(row[key] for key in keys), f"{row['num']} vs {row['num_real']}", row["features"]]
        for name, row in agreement.items()
    ]
    columns = ["asked for and measured", "samples", "95 % interval", "real people", "95 % interval", "n", "measured"]
    what = (
        "r: correlation of what was asked for with what is measured on the images; slope: of the line through them, 1 "
        "if a unit more is shown for a unit more; error: mean absolute difference. Real people: what the rule that "
        "measures reaches on the people whose attributes were asked for."
    )
    return [table(columns, rows), [what]]


def _control(control: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row for each score of what a judge says of images, beside the same of real images, and for its own skill."""
    rows = [
        [name, _measured(row["value"]), row["ci95"], row["real"], row["num"], row["num_people"], row["features"]]
        for name, row in control.items()
    ]
    columns = ["asked for and judged", "value", "95 % interval", "real images", "n", "people", "of"]
    what = (
        "From the same label maps and seeds, images are asked for the lowest and for the highest value, all else "
        "unknown; low and high: what the judge says of them, on average; difference: high less low of each map; above: "
        "share of maps judged higher where more was asked for, 0.5 if nothing is heard; judge: its own skill "
        "on real images of the test people, which bounds what the others prove; real images: what it says of those "
        "with these labels. The judge took no part in making the images, if it is not the classifier that guided them."
    )
    return [table(columns, rows), [what]]


def _ranking(ranking: Mapping[str, Mapping[str, list[float]]]) -> list[list[str]]:
    """A row for each view and distortion: whether more of it is further away."""
    rows = [
        [view, name, *apart, "yes" if 0 < apart[0] < apart[1] < apart[2] else "NO"]
        for view, distortions in ranking.items()
        for name, apart in distortions.items()
    ]
    what = "Fréchet distance of unseen people from themselves, distorted a little, more and much:"
    return [[what], table(["features", "distortion", "a little", "more", "much", "ranked"], rows)]


def _explanation(report: Mapping[str, Any]) -> list[str]:
    """What the columns are, and the figures."""
    return [
        "Real vs real: the same score of real images in the place of samples, as many as *of images* says: of training "
        "people the mean over that many random sets (sets x images), or of the test people themselves. Best is a score "
        "as near to it as possible. Of pairs, it is a test image beside that of another person, which a sample beside "
        "its own target should be nearer to. Below pairs may stand what can be made of their sources without a model.",
        "",
        "Intervals: jackknife over people, cut off where a score ends. Conservative, with an error 1.4 to 1.9 times "
        f"the true one for a model as good as real people: {', '.join(report['conservative'])}. Where all images count "
        "the same (precision 1), the jackknife sees no error at all.",
        "",
        "Nulls, which any model must beat:",
        "",
        *[f"* {name}: {DEFINITIONS[name]}." for name in report["nulls"]],
        "",
        "A linear null may match the mean image, and so the MMDs, better than a model that makes sharp images. "
        "nearest_training compares with training people: above real vs real, samples are nearer to them than unseen "
        "people are.",
        "",
        "samples.png shows real people beside the samples"
        + (", agreement.png their attributes" if report.get("agreement") else "")
        + ": as private as the scans.",
        "",
        "![samples](samples.png)",
        "![scores](scores.png)",
        "![map](map.png)",
        *(["![agreement](agreement.png)"] if report.get("agreement") else []),
        *(["![control](control.png)"] if report.get("control") else []),
        *[f"![{name}]({strip_file(name)})" for name in report.get("strips", [])],
    ]


def verdict(report: Mapping[str, Any]) -> str:
    """What the numbers say, in a few sentences: what the method warns of, then of nulls, of real people, of copies."""
    return " ".join([*(f"WARNING: {warning}" for warning in report["warnings"]), _of_scores(report)])


def _of_scores(report: Mapping[str, Any]) -> str:
    if "metrics" not in report:
        return f"{report['method']} makes no images: its own scores are all there is."
    # A null that is like nobody is not better for it.
    rows = {name: row for name, row in report["metrics"].items() if name != "nearest_training"}
    words: dict[bool, list[str]] = {True: [], False: []}
    for null, scores in report["nulls"].items():
        nearer = sum(_away(row, row["value"]) < _away(row, scores[name]) for name, row in rows.items())
        surely = sum(_away(row, *row["ci95"]) < _away(row, scores[name]) for name, row in rows.items())
        words[nearer > len(rows) / 2].append(f"{null} ({nearer}, {surely} with the whole interval)")
    beaten, others = (" and ".join(filter(None, [", ".join(some[:-1]), *some[-1:]])) for some in words.values())
    held = sum(row["ci95"][0] <= row["real_vs_real"] <= row["ci95"][1] for row in rows.values())
    how, first, rest = ("most", beaten, others) if beaten else ("half or fewer", others, "")
    return (
        f"By {how} of {len(rows)} scores the samples are nearer to real people than {first}"
        + (f"; by half or fewer, than {rest}" if rest else "")
        + f". The interval holds the real-vs-real value in {held} of {len(rows)}. {_of_copies(report)}"
        + _of_agreement(report.get("agreement", {}))
        + _of_control(report.get("control", {}))
    )


def _of_agreement(agreement: Mapping[str, Mapping[str, Any]]) -> str:
    """How well images show what was asked for, as far as it can be measured."""
    correlations = {name.removesuffix("_r"): row for name, row in agreement.items() if name.endswith("_r")}
    parts = [f"{name} {row['value']:.2f}, real people {row['real']:.2f}" for name, row in correlations.items()]
    return f" What was asked for and what is measured correlate: {'; '.join(parts)}." if parts else ""


def _of_control(control: Mapping[str, Mapping[str, Any]]) -> str:
    """What a judge says of images that were asked for more, against less, of each attribute."""
    parts = [
        f"{name.removesuffix('_difference')} {row['value']:+.3g} ({row['ci95'][0]:.3g} to {row['ci95'][1]:.3g})"
        for name, row in control.items()
        if name.endswith("_difference")
    ]
    return f" Asked for the most instead of the least, images are judged: {'; '.join(parts)}." if parts else ""


def _of_copies(report: Mapping[str, Any]) -> str:
    row = report["metrics"]["nearest_training"]
    numbers = f"(nearest_training {row['value']:.3g}, of unseen people {row['real_vs_real']:.3g})"
    if "pairs" in report:
        return f"Samples have unseen people as targets, so they should be no copies of training people {numbers}."
    if row["ci95"][0] > row["real_vs_real"]:
        return f"Samples are more like training people than unseen people are {numbers}: look for copies."
    return f"No sign of copies {numbers}, but no audit was made."


def _away(row: Mapping[str, Any], *values: float) -> float:
    """How far the furthest of some values is from that of real people."""
    return max(abs(value - float(row["real_vs_real"])) for value in values)
