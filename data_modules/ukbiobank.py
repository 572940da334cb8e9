"""UK Biobank: brain MRI in the bulk zips of fields 20252 (T1) and 20253 (T2 FLAIR), read without extracting.

    <root>/[.../]<eid>_20252_<instance>_<array>.zip     members T1/T1_unbiased_brain.nii.gz, ...
    <root>/[.../]<eid>_20253_<instance>_<array>.zip     members T2_FLAIR/T2_FLAIR_unbiased_brain.nii.gz, ...
    <root>/[.../]<eid>_20252_<instance>_<array>/T1/...  the same, unzipped
    a table of people, whose columns are named 31-0.0 (ukbconv), f.31.0.0 (R) or p31 (RAP)

UK Biobank needs an application (ukbiobank.ac.uk), and those who withdraw may not be used any further.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_modules import archives
from data_modules.base import MedicalDataModule
from data_modules.records import Record
from data_modules.sources import Raw, Rejected, Scan, ZipMember
from data_modules.tables import SEX
from data_modules.ukbiobank_table import Volumes, of_people
from data_modules.withdrawals import number_of, read_ids
from lit_medgen.errors import InputError

Modality = Literal["t1", "flair"]
Image = Literal["unbiased_brain", "brain", "brain_to_mni", "unbiased", "head"]
FIELDS: dict[str, Modality] = {"20252": "t1", "20253": "flair"}
PREFIXES: dict[Modality, str] = {"t1": "T1/T1", "flair": "T2_FLAIR/T2_FLAIR"}
SUFFIXES: dict[Image, str] = {
    "unbiased_brain": "_unbiased_brain",
    "brain": "_brain",
    "brain_to_mni": "_brain_to_MNI",
    "unbiased": "_unbiased",
    "head": "",
}
BULK = re.compile(r"(\d{1,15})_(20252|20253)_(\d{1,2})_(\d{1,2})")
"""Name of a bulk file without its suffix: person, field, instance (the visit), array."""
MAX_DAYS, SECONDS_PER_DAY = 90, 86400
"""UK Biobank gives that long to remove people who withdrew."""
UNUSABLE = "failed UK Biobank's quality control: there is only an unusable/ image"


@dataclass(frozen=True)
class BulkMember(ZipMember):
    """A member of a bulk zip."""

    def lacking(self, names: Collection[str]) -> str:
        """Says so where the scan failed quality control."""
        return UNUSABLE if any("/unusable/" in name for name in names) else super().lacking(names)


class UKBiobankDataModule(MedicalDataModule):
    """Brain MRI of UK Biobank, one image for each person and visit (instance 2 is the first, 3 the repeat visit).

    Attributes of every scan: sex (0 female, 1 male), age_years at that visit, ventricles_ml (CSF in the ventricles) and
    brain_ml (grey and white matter); NaN where unknown. A method scales them by the range of its training people.

    Where the other modality stands in `preprocessing.sources` ("flair" of a T1, "t1" of a FLAIR), it is read beside
    each image, from the same visit; so it is where `preprocessing.channels` names both, [t1, flair], as a channel.

    Args:
        root: folder of the bulk files, flat or nested, zipped or not.
        withdrawals: the list of people who withdrew, as UK Biobank sends it to every application; an id a line. Must be
            given; an empty file is a list without people. All that was made of these people goes; see `exclude`.
        table: CSV or TSV with a row for each person; None: the one at the top of `root` that has a column of ids (eid)
            and one of the fields read, if there is one.
        modality: what is generated, T1-weighted images or T2 FLAIR.
        image: which of a scan's images. `unbiased_brain`: skull-stripped, bias field corrected, in the scanner's space;
            `brain`: not corrected; `brain_to_mni`: warped to the MNI152 template, which makes the sizes of ventricles
            and brains alike; `unbiased` and `head`: with the (defaced) head.
        volumes: `normalised` for head size (fields 25003 and 25009), as Pinaya et al. (2022) condition on them, or as
            `measured` (25004 and 25010).
    """

    ids_are_in_names = True
    remedy = (
        "UK Biobank needs an application (ukbiobank.ac.uk); expected <eid>_20252_<instance>_0.zip, as ukbfetch or the "
        "Research Analysis Platform gives them (docs/ukbiobank.md). To try a method without it, draw phantoms: `python "
        "-m lit_medgen phantom ukbiobank --out demo/ukbiobank --num_subjects 64`."
    )

    def __init__(
        self,
        root: str,
        withdrawals: str | None = None,
        table: str | None = None,
        modality: Modality = "t1",
        image: Image = "unbiased_brain",
        volumes: Volumes = "normalised",
        **common: Any,  # jsonargparse reads the base's signature through this, so a misspelt key is an error
    ) -> None:
        super().__init__(root, **common)
        if not withdrawals:
            raise InputError(
                "data.init_args.withdrawals is missing; give the newest list of people who withdrew that UK Biobank "
                "sent to your application, a text file with an id in each line (an empty file if there is none yet)."
            )
        if (channels := self.preprocessing.channels) and channels[0] != modality:
            raise InputError(
                f"data.init_args.preprocessing.channels begins with {channels[0]}, but data.init_args.modality is "
                f"{modality}; begin with that, as in [t1, flair]."
            )
        self.withdrawals, self.table, self.modality, self.image = Path(withdrawals), table, modality, image
        self.volumes: Volumes = volumes
        self.anatomy = "brain" if modality == "t1" and "brain" in image else ""

    def listing(self) -> dict[str, Any]:
        """All arguments of its own but the list of withdrawals, which changes the store itself."""
        return {"table": self.table, "modality": self.modality, "image": self.image, "volumes": self.volumes}

    def excluded(self) -> set[str]:
        """Those who withdrew, and those of the file `exclude`; says so if the list is old."""
        with suppress(OSError):
            if (days := (time.time() - self.withdrawals.stat().st_mtime) / SECONDS_PER_DAY) > MAX_DAYS:
                self.remarks.append(
                    f"{self.withdrawals} is {days:.0f} days old: is it the newest list that UK Biobank sent?"
                )
        return super().excluded() | read_ids(self.withdrawals, "data.init_args.withdrawals", numbers=True)

    def person_id(self, text: str) -> str:
        """A participant's number, also where a program has written it as 1000223.0."""
        return text if (number := number_of(text)) is None else str(number)

    def category_names(self) -> dict[str, tuple[str, ...]]:
        """Name of an attribute that is a category -> the names of its values 0, 1, ..."""
        return {"sex": tuple(SEX)}

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each person and visit who is in the table; nothing of people who withdrew is looked at."""
        bulk, rejected = self._bulk()
        visits = bulk[self.modality]
        if not visits and not rejected:
            return [], []
        beside_it = (*self.preprocessing.sources, *self.preprocessing.channels[1:])
        self._refuse_unknown(beside_it, [name for name, each in bulk.items() if each and name != self.modality])
        known = of_people(self.root, self.table, self.tree().files, self.volumes, self.unread, self.left_out.ids)
        self.remarks += known.lines
        scans = []
        for (person, instance), path in visits.items():
            if person in self.left_out.ids:
                scans.append(Scan(path, person, instance))  # to be counted, not to be read
                continue
            if known.path and person not in known.rows:
                rejected.append(Rejected(str(path), f"no row of {known.path.name} for this person"))
                continue
            beside: dict[str, Raw] = {}
            for name in beside_it:
                other = bulk[name].get((person, instance))  # type: ignore[index]
                if other and (source := self._source(other, name, rejected)):  # type: ignore[arg-type]
                    beside[name] = source
            source = self._source(path, self.modality, rejected, lazy=True)
            if source:
                scans.append(Scan(source, person, instance, known.of(person, instance), beside))
        return scans, self.tree().lost + rejected

    def _refuse_unknown(self, names: Sequence[str], there: Sequence[str]) -> None:
        """InputError for a name of an image that UK Biobank has beside no image of this modality."""
        for name in names:
            if name not in FIELDS.values() or name == self.modality:
                raise InputError(
                    f"data.init_args.preprocessing asks for a '{name}' beside each {self.modality} image, but of UK "
                    f"Biobank {' and '.join(FIELDS.values())} are read; beside the images of {self.root} there is "
                    f"{', '.join(there) or 'nothing'}: name that, or leave it out."
                )

    def taken(self, accepted: Sequence[Record], rejected: Sequence[Rejected], owner: bool) -> list[str]:
        """As of every data set, with the number of images rejected for each reason."""
        reasons = Counter(row.reason for row in rejected)
        most = [f"rejected {num}: {reason}" for reason, num in reasons.most_common() if num > 1 or reason == UNUSABLE]
        return [*super().taken(accepted, rejected, owner), *most]

    def passed_over(self, rejected: Sequence[Rejected]) -> str:
        """How many zips have other names than bulk files of T1 and FLAIR; "" if none has."""
        zips = [path for path, is_folder in self._paths() if not is_folder]
        num = sum(not BULK.fullmatch(path.stem) for path in zips)
        return f"passed over {num} of {len(zips)} zips: not named <eid>_20252_<instance>_<array>.zip" if num else ""

    def _bulk(self) -> tuple[dict[Modality, dict[tuple[str, str], Path]], list[Rejected]]:
        """Modality -> person and visit -> zip or folder; and what is there twice."""
        found: dict[Modality, dict[tuple[str, str], tuple[tuple[int, bool, str], Path]]] = {"t1": {}, "flair": {}}
        rejected = []
        for path, is_folder in self._paths():
            match = BULK.fullmatch(path.name if is_folder else path.stem)
            if not match:
                continue
            person, modality = str(int(match[1])), FIELDS[match[2]]
            visit, rank = (person, str(int(match[3]))), (int(match[4]), is_folder, str(path))
            first = found[modality].setdefault(visit, (rank, path))
            if first[1] != path:
                found[modality][visit] = min(first, (rank, path))
                if modality == self.modality:
                    rejected.append(Rejected(str(max(first, (rank, path))[1]), "another image of the same visit"))
        return {
            name: {visit: path for visit, (_, path) in sorted(each.items())} for name, each in found.items()
        }, rejected

    def _paths(self) -> Iterator[tuple[Path, bool]]:
        yield from ((path, False) for path in self.tree().files if path.suffix.lower() == ".zip")
        yield from ((path, True) for path in self.tree().folders)

    def _source(self, path: Path, modality: Modality, rejected: list[Rejected], lazy: bool = False) -> Raw | None:
        """The image in a zip or folder; None, and a row of the rejected, if it is not there.

        A zip is looked into when it is read (`lazy`), which is done in parallel, and only once.
        """
        member = f"{PREFIXES[modality]}{SUFFIXES[self.image]}.nii.gz"
        if path.suffix.lower() == ".zip":
            source = BulkMember(path, member)
            try:
                if lazy or member in (names := archives.names(path)):
                    return source
                reason = source.lacking(names)
            except ValueError as error:
                reason = str(error)
        else:
            if (file := path / member) in self._files:
                return file
            folder = path / Path(member).parent / "unusable"
            reason = UNUSABLE if folder in self.tree().of_folder else f"no '{member}' in this folder"
        rejected.append(Rejected(str(path), reason))
        return None

    @property
    def _files(self) -> Collection[Path]:
        """The files below the root."""
        if self._known_tree is not self.tree():
            self._known_tree, self._known_files = self.tree(), set(self.tree().files)
        return self._known_files

    _known_tree: Any = None
    _known_files: Collection[Path] = ()
