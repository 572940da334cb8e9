"""What a preparation says, in a few lines: how many images were taken, of which kinds, and what was not.

`prepare` tells the owner of the data the names of folders. The lines of all other verbs may end up in logs that others
read, so they hold no word of a raw file's name but those that name a kind of image.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_modules.listing import READ, Tree, count_suffixes, stem_of, suffix_of
from data_modules.records import Record
from data_modules.sources import Member, Rejected, Scan, Series, source_of

MANY = 8
"""Folders or kinds of names; more are summed up."""
KINDS = re.compile(
    r"(t1|t2|pd|flair|dwi|adc|bold|asl|swi|pet|ct|cbct|mri?|mprage|angio|brain|head|anat|raw|orig|image|norm|preproc)w?",
    re.IGNORECASE,
)
"""Words of a name that say what an image is, and nothing of whose it is."""
LABELS = re.compile(
    r"(\w*seg|segmentations?|\w*masks?|\w*msk|labels?(map|tr|ts)?|lesions?|rois?|aparc|wmparc|parc(ellations?)?|ribbon|"
    r"contours?|annot(ation)?s?|groundtruth|gt|[cgp]tv)"
    r"\d*",
    re.IGNORECASE,
)
"""Words that say that it is no image but a label map or a mask."""
CONTRASTS = re.compile(r"(t1|t2|pd|flair|mprage)w?", re.IGNORECASE)
"""Words that, at the end of a name, say that it is an image all the same."""
TEXTS = (".csv", ".tsv", ".json", ".txt", ".xml", ".md", ".yaml", ".yml", ".bval", ".bvec", ".html", ".pdf", ".log")
"""Suffixes of what is no image, however it is read."""


def account(accepted: Sequence[Record], rejected: Sequence[Rejected], root: Path, folder: Path) -> str:
    """How many images of how many people are in the store; of the others the first reason and where they are listed."""
    line = counts(accepted, rejected)
    if rejected:
        line += f"; {len(rejected)} rejected, the first: {nameless(rejected[0], root)}"
        line += f"; all are listed in {folder / 'rejected.csv'}"
    return line


def counts(accepted: Sequence[Record], rejected: Sequence[Rejected]) -> str:
    """How many images of how many people were accepted, in words."""
    people = len({record.person for record in accepted})
    return f"accepted {len(accepted)} of {len(accepted) + len(rejected)} images, {people} people"


def kinds(scans: Sequence[Scan], root: Path, owner: bool) -> list[str]:
    """How many images were taken of each folder directly below the root, and of each kind of name; what looks wrong.

    `owner` names the folders.
    """
    paths = [_below(scan.path, root) for scan in scans]
    folders = Counter(f"{path.parts[0]}/" if len(path.parts) > 1 else "./" for path in paths)
    names = [_kind(scan) for scan in scans]
    lines = [f"images by folder: {_counted(folders, owner)}; by name: {_counted(Counter(names), True)}"]
    labels = Counter(name for name, path in zip(names, paths, strict=True) if _is_label(path))
    if labels:
        lines.append(
            f"warning: masks are among the images: {labels.total()} of {len(scans)} names are those of label maps or "
            f"masks ({_counted(labels, True)}); give a data.init_args.pattern that leaves them out."
        )
    brains = ["brain" in map(str.lower, _words(path.name)) for path in paths if not _is_label(path)]
    if any(brains) and not all(brains):
        lines.append(
            f"warning: raw heads seem to be among the brains: {brains.count(False)} of {len(scans)} names do not say "
            "brain as the others do; give a data.init_args.pattern of either."
        )
    return lines


def contents(accepted: Sequence[Record]) -> str:
    """A line if images look like label maps inside, whatever their names; "" if none does."""
    num = sum(record.levels > 0 for record in accepted)
    most = max((record.levels for record in accepted), default=0)
    if not num:
        return ""
    return (
        f"warning: {num} of {len(accepted)} images consist of at most {most} whole numbers, as masks and label maps "
        "do; leave them out if they are no images."
    )


def lacking(accepted: Sequence[Record], names: Iterable[str]) -> str:
    """How many images have nothing of a name beside them, where others have; "" if none lacks anything."""
    counts = {name: sum(name not in record.beside for record in accepted) for name in names}
    parts = [f"{count} of {len(accepted)} images have no {name}" for name, count in counts.items() if count]
    return ", ".join(parts)


def passed_over(tree: Tree, scans: Iterable[Scan], rejected: Iterable[Rejected]) -> str:
    """How many files of each suffix neither a scan nor a rejection names, and what can be read; "" if none.

    Tables, texts and hidden files do not count.
    """
    named = {path for scan in scans for path in scan.files} | {Path(row.source) for row in rejected}
    left = [path for path in tree.files if path not in named and path.parent not in named]
    left = [path for path in left if suffix_of(path) not in TEXTS and not path.name.startswith(".")]
    return f"passed over {len(left)} files: {count_suffixes(left)}; read are {READ}" if left else ""


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _kind(scan: Scan) -> str:
    """`*_T1w.nii.gz`, with the words of a name that say its kind."""
    source = source_of(scan.source)
    if isinstance(source, Series):
        return "DICOM series"
    file = Path(source.member) if isinstance(source, Member) else source.path
    known = [word for word in _words(file.name) if KINDS.fullmatch(word) or LABELS.fullmatch(word)]
    return "".join(["*", *(f"_{word}" for word in known), suffix_of(file)])


def _is_label(path: Path) -> bool:
    """Whether a word of the name, or the whole name of a folder, says so."""
    if path.name.lower() == "brainmask.mgz":  # FreeSurfer's name of a stripped head
        return False
    words = _words(path.name)
    named = any(map(LABELS.fullmatch, words)) and not any(map(CONTRASTS.fullmatch, words[-1:]))
    return named or any(map(LABELS.fullmatch, path.parts[:-1]))


def _words(name: str) -> list[str]:
    """The words of a name, its suffix left out."""
    return re.split(r"[_\-+.\s]+", stem_of(Path(name)))


def _counted(counts: Counter[str], named: bool) -> str:
    if len(counts) > MANY:
        low, high = min(counts.values()), max(counts.values())
        return f"{len(counts)} with {low if low == high else f'{low} to {high}'} each"
    return ", ".join(f"{name} {count}" if named else str(count) for name, count in sorted(counts.items()))


def nameless(row: Rejected, root: Path) -> str:
    """The reason of a rejection without the names of files and folders, which may be those of people."""
    source, reason = Path(row.source), row.reason
    files = os.listdir(source) if source.is_dir() and os.access(source, os.R_OK) else []
    for name in sorted([*files, str(source), *_below(source, root).parts], key=len, reverse=True):
        reason = reason.replace(name, "a file") if len(name) > 2 else reason
    return reason
