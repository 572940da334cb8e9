"""The memorisation audit: whether samples are copies of training people's images, and what it takes to notice.

Samples are compared with all training images in two representations (`audit_views`); what counts as a copy is what
hardly any unseen person's image is (`copies`). The audit tests itself: images of training people, as they are and
altered, go the same way as samples, and the share of them that is found is reported beside the share of samples.
Dar et al., "Unconditional latent diffusion models memorize patient imaging data", Nature Biomedical Engineering 2025,
count copies in this manner.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_medgen import __version__
from lit_medgen.batch import Images, TrainingData
from lit_medgen.errors import InputError
from lit_medgen.evaluation.audit_page import as_markdown, verdict
from lit_medgen.evaluation.audit_reference import REPRESENTATIONS, Reference
from lit_medgen.evaluation.audit_views import moved, with_gamma
from lit_medgen.evaluation.copies import Nearest, Threshold, data_copying, mean_leaked, persons, share
from lit_medgen.evaluation.held import quick
from lit_medgen.files import Outputs, write_atomically
from lit_medgen.images.audit_plots import Pair, save_likeness, save_pairs
from lit_medgen.metrics.base import images_of_people
from lit_medgen.people import numbered
from lit_medgen.seeds import SeededNoise, mix

FILES = ("report.json", "report.md", "pairs.png", "likeness.png")
FALSE_ALARMS = 0.05
"""Share of unseen people that may be called copies, as in Dar et al. 2025."""
MIN_PEOPLE = 8
"""Training people, and unseen ones, that an audit needs."""
FEW = 19
"""Unseen people below which no threshold has as few false alarms as `FALSE_ALARMS`."""
NUM_PLANTED = 64
"""Training people, at most, whose images are planted to test the audit itself."""
NUM_PAIRS, NUM_LISTED = 6, 20
"""Nearest pairs that are shown, and that are listed."""
AS_PLANTED = 20
"""One planted copy in so many is less like its original than a sample that is called as like as a copy."""
TURN, NOISE, GAMMA = 5.0, 0.1, 0.7
"""How planted copies are altered: degrees, standard deviation (of a range of 2), exponent of grey values."""


def output_files(out: Path) -> Outputs:
    """The files of an audit in its folder."""
    return Outputs(out, "audit", FILES)


def unseen_images(data: TrainingData) -> Images:
    """Images of all people whom training did not see: validation and test."""
    parts = [data.images(split) for split in ("val", "test")]
    first = len(parts[0])

    def read(indices: Sequence[int]) -> Tensor:
        chosen = [(parts[0], index) if index < first else (parts[1], index - first) for index in indices]
        return torch.cat([part.read([index]) for part, index in chosen])

    keys, people = ([item for part in parts for item in getattr(part, name)] for name in ("keys", "people"))
    return Images(keys, people, read)


def why_not(data: TrainingData) -> str:
    """Why data has too few people for an audit, in words; "" where it has enough."""
    unseen = len({*data.people("val").values(), *data.people("test").values()})
    train = len(set(data.people("train").values()))
    if min(unseen, train) >= MIN_PEOPLE:
        return ""
    return f"{train} training people and {unseen} unseen ones; an audit needs {MIN_PEOPLE} of each"


def refuse_few_people(data: TrainingData) -> None:
    """InputError for data with too few people for an audit."""
    if why := why_not(data):
        raise InputError(f"audit: {why}; train with other data.init_args.fractions, or on more people.")


def audit(
    samples: Images,
    data: TrainingData,
    facts: Mapping[str, Any],
    false_alarms: float = FALSE_ALARMS,
    membership: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Pair]]:
    """The report on samples, and the pairs of samples and training images that are most alike.

    InputError for data with too few people.

    Args:
        samples: images in [-1, 1] on the data's grid, read in blocks.
        data: that the model was trained on, set up.
        facts: what the report says of where samples came from.
        false_alarms: share of unseen people that may be called copies.
        membership: what `membership.membership` found; None: it was not asked for.
    """
    refuse_few_people(data)
    reference, unseen = Reference.of(data), unseen_images(data)
    of_samples, of_unseen = reference.nearest(samples), reference.nearest(quick(unseen))
    thresholds = {name: Threshold.of(found.likeness, unseen.people, false_alarms) for name, found in of_unseen.items()}
    people = reference.images.people
    self_test, levels = _self_test(reference, thresholds)
    report: dict[str, Any] = {
        "lit_medgen": __version__,
        **facts,
        "data": data.digest,
        "num_samples": len(samples),
        "people": {"train": len(set(people)), "unseen": len(images_of_people(unseen.people))},
        "images": {"train": len(people), "unseen": len(unseen)},
        "false_alarms_asked": false_alarms,
        "copies": {
            name: _copies(of_samples[name], of_unseen[name], thresholds[name], reference, unseen.people)
            | {"as_planted": _as_planted(of_samples[name], of_unseen[name], levels[name])}
            for name in REPRESENTATIONS
        },
        "self_test": self_test,
        "membership": membership,
        "nearest": list(_listed(of_samples, thresholds, samples.keys, people)),
        "likeness": {
            kind: {name: [round(each, 4) for each in found.likeness.tolist()] for name, found in of.items()}
            for kind, of in (("samples", of_samples), ("unseen", of_unseen))
        },
    }
    report["verdict"] = verdict(report)
    return report, list(_pairs(of_samples, samples, reference))


def _copies(
    samples: Nearest, unseen: Nearest, threshold: Threshold, reference: Reference, whose: Sequence[str]
) -> dict[str, Any]:
    """What one representation says of the samples, beside what it says of unseen people."""
    people, num = reference.images.people, len(samples.index)
    num_train = len(set(people))
    leaked = persons(samples, threshold.value, people)
    num_copies = int((samples.likeness > threshold.value).sum())
    one_each = torch.stack([some[0] for some in images_of_people(whose).values()])
    of_people = Nearest(unseen.index[one_each], unseen.likeness[one_each])
    pool = min(num, len(one_each))
    pools = {
        name: mean_leaked(found, threshold.value, people, pool) / num_train
        for name, found in (("samples", samples), ("unseen", of_people))
    }
    c_t = data_copying(samples, unseen, reference.embedded)
    return {
        "threshold": threshold.value,
        "false_alarms": {"value": threshold.rate, "ci95": threshold.ci95, "rank": threshold.rank},
        "copied": {**share(num_copies, num), "chance": threshold.chance(num_copies, num)},
        "leaked": share(len(leaked), num_train),
        "leaked_of_equal_pools": {"pool": pool, **pools},
        "c_t": {"value": c_t.value, "cells": c_t.cells},
        "median": {"samples": float(samples.likeness.median()), "unseen": float(unseen.likeness.median())},
    }


def planted(images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Name of an alteration -> copies of images, n c *s in [-1, 1]; noise is a function of each image's seed alone."""

    def turned(some: Tensor) -> Tensor:
        return moved(some, torch.tensor([TURN if seed % 2 else -TURN for seed in seeds]))

    def noisy(some: Tensor) -> Tensor:
        return (some + NOISE * SeededNoise([mix("planted", seed) for seed in seeds]).like(some)).clamp(-1, 1)

    def brighter(some: Tensor) -> Tensor:
        return with_gamma(some, torch.full((len(some),), GAMMA))

    return {
        "verbatim": images,
        "flipped": images.flip(2),
        "turned": turned(images),
        "noise": noisy(images),
        "gamma": brighter(images),
        "all": noisy(brighter(turned(images.flip(2)))),
    }


def _self_test(
    reference: Reference, thresholds: Mapping[str, Threshold]
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """What becomes of images of training people that are planted among the samples.

    Alteration -> representation -> share of copies that are found, with the right person as the nearest; and
    representation -> the likeness that all but one in `AS_PLANTED` of the most altered copies reach.
    """
    people = reference.images.people
    whose = [some[0] for some in images_of_people(people).values()]
    num = min(NUM_PLANTED, len(whose))
    chosen = [int(whose[i * len(whose) // num]) for i in range(num)]
    rows: dict[str, dict[str, Any]] = {}
    levels: dict[str, float] = {}
    for name, copies in planted(reference.images.read(chosen), chosen).items():
        for representation, found in reference.nearest(Images.of(copies)).items():
            right = [people[i] == people[k] for i, k in zip(found.index.tolist(), chosen, strict=True)]
            hits = (found.likeness > thresholds[representation].value) & torch.tensor(right)
            rows.setdefault(name, {})[representation] = share(int(hits.sum()), num)
            levels[representation] = float(found.likeness.sort().values[num // AS_PLANTED])
    return rows, levels


def _as_planted(samples: Nearest, unseen: Nearest, level: float) -> dict[str, Any] | None:
    """How many samples are as like training images as planted copies; None where unseen people's images are so too."""
    if level <= float(unseen.likeness.max()):
        return None
    return {"level": level, "hits": int((samples.likeness >= level).sum())}


def _order(found: Mapping[str, Nearest]) -> list[int]:
    """Samples in the order of their likeness by the learned embedding, the highest first."""
    order: list[int] = found[REPRESENTATIONS[-1]].likeness.argsort(descending=True).tolist()
    return order


def _listed(
    found: Mapping[str, Nearest], thresholds: Mapping[str, Threshold], keys: Sequence[str], people: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A row for each of the samples most like a training image; people by number alone."""
    numbers = numbered(people)
    for i in _order(found)[:NUM_LISTED]:
        row: dict[str, Any] = {"sample": keys[i]}
        for name, of in found.items():
            index, likeness = int(of.index[i]), float(of.likeness[i])
            row[name] = {
                "training_image": index,
                "training_person": numbers[index],
                "likeness": likeness,
                "copy": likeness > thresholds[name].value,
            }
        yield row


def _pairs(found: Mapping[str, Nearest], samples: Images, reference: Reference) -> Iterator[Pair]:
    """The samples most like a training image, each beside it."""
    of = found[REPRESENTATIONS[-1]]
    for i in _order(found)[:NUM_PAIRS]:
        image = samples.read([i])
        other = reference.images.read([int(of.index[i])])
        yield Pair(image, other, {name: float(each.likeness[i]) for name, each in found.items()})


def write_audit(out: Path, report: Mapping[str, Any], pairs: Sequence[Pair] = ()) -> None:
    """report.json and report.md, and with pairs, which show training people, the figures; earlier files go."""
    outputs = output_files(out)
    outputs.check()
    outputs.clear()
    outputs.claim()
    write_atomically(out / "report.json", json.dumps(report, indent=2))
    write_atomically(out / "report.md", as_markdown(report, shown=bool(pairs)))
    save_likeness(out / "likeness.png", report)
    if pairs:
        save_pairs(out / "pairs.png", pairs)
    outputs.end()
