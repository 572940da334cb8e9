"""Which part of the data people belong to: by shares, by folds or by lists, and never to two."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_modules.prepared import PreparedData
from data_modules.records import Record
from data_modules.split_lists import NameList, Sides, divide, lines_about, read_lists, refuse_keys
from data_modules.splits import Fold, Split, split_of
from data_modules.withdrawals import LeftOut
from lit_medgen.errors import InputError
from lit_medgen.output import say


class DividedPeople(PreparedData):
    """Prepared data whose people are divided; arguments: `MedicalDataModule`'s."""

    root: Path
    tells_absent: bool = True
    """Whether names of lists that are nobody's are told; not where lists name more people than users have."""

    def divide_by(
        self, fractions: tuple[float, float, float], fold: str | None, split_files: dict[str, str] | None
    ) -> None:
        """Takes what divides people; InputError for what does not go together."""
        if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
            raise InputError(f"data.init_args.fractions is {list(fractions)}; give three shares that sum to 1.")
        if split_files is not None:
            refuse_keys(split_files, fold)
        self.fractions, self.fold, self.split_files = fractions, fold, split_files
        self._fold = None if fold is None else Fold.parse(fold)
        self._sides: Sides | None = None
        self.left_out = LeftOut()
        """Who is left out, read anew by every preparation and `setup`."""

    def split_lists(self) -> dict[str, NameList]:
        """Part -> the list of who is in it, see `split_lists.PARTS`; empty where shares or a fold divide people."""
        return read_lists(self.split_files, self.root) if self.split_files else {}

    def person_id(self, text: str) -> str:
        """An id in a list of people, as `Scan.person` names people."""
        return text

    def person_of_image(self, name: str) -> str | None:
        """Id of the person whom the name of an image tells of; None where names do not."""
        return None

    def _divide(self, members: Iterable[tuple[str, str]]) -> Sides | None:
        """Who is in which part by lists, of images of whom (hashed) with what names (hashed); None without lists."""
        if not (lists := self.split_lists()):
            return None
        ids, gone = (self.person_id, self.person_of_image), self.left_out.people
        return divide(lists, members, gone, *ids, self.fractions, self.seed)

    def _listed(self, records: list[Record]) -> list[Record]:
        """The records that lists put into a part; says how many they leave out."""
        if not (sides := self._sides):
            return records
        taken = [sides.has(each.person, each.name) and sides.split_of(each.person) is not None for each in records]
        left = [(each.person, each.name) for each, there in zip(records, taken, strict=True) if not there]
        for line in lines_about(sides, left, self.tells_absent):
            say(line)
        return [each for each, there in zip(records, taken, strict=True) if there]

    def _side_of(self, person: str) -> Split:
        if self._sides and (found := self._sides.split_of(person)):
            return found
        if self._fold is not None:
            return self._fold.split_of(person, self.fractions[1], self.seed)
        return split_of(person, self.fractions, self.seed)

    @property
    def _divided(self) -> str:
        """What divides people, for messages."""
        if self._sides:
            return f"lists ({', '.join(each.source for each in self._sides.lists.values())})"
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"data.init_args.fractions {list(self.fractions)}{fold} and seed {self.seed}"
