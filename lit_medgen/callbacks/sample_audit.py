"""The audit at the end of `sample`: the samples of a folder against the data of their checkpoint, where it is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_medgen.batch import DataSpec, Images, TrainingData
from lit_medgen.errors import InputError, MissingDataError, RunError, describe
from lit_medgen.evaluation.audit import audit, why_not, write_audit
from lit_medgen.evaluation.far_sets import images_of_folder
from lit_medgen.output import say
from lit_medgen.sample_reading import read_samples, spec_of
from lit_medgen.sampling import FACTS_OF_IMAGES, refuse_unlike

if TYPE_CHECKING:
    from data_modules.base import MedicalDataModule

FOLDER = "audit"
OFF = "none: --audit false"
"""What the manifest says where no audit was asked for."""
NO_DATA, NOT_POSSIBLE = "none: the prepared data is not there", "none: not possible with this data or these files"
"""What it says where none could be made, of which a line on the terminal says more."""
OF_PATIENTS = "these images were made from images of patients, whom they show whether or not they were trained on"


class SampleAudit:
    """Audits the samples that a run of `sample` has written.

    Args:
        data: of the checkpoint, of which the prepared store alone is read; None: there is none.
        trained: the spec of the data that the model was trained on.
        facts: what the report says of where the samples came from.
    """

    def __init__(self, data: MedicalDataModule | None, trained: DataSpec | None, facts: dict[str, Any]) -> None:
        self.data, self.trained, self.facts = data, trained, facts

    def __call__(self, folder: Path) -> str:
        """Writes the report, without pictures of training people; returns what the manifest says of it.

        Nothing fails where no audit can be made: one line says so.
        """
        try:
            self._set_up()
            report = self._report(folder)
        except (RunError, OSError) as error:
            say(f"no audit of copies was made: {describe(error).removesuffix('.')}.")
            return NO_DATA if isinstance(error, MissingDataError) else NOT_POSSIBLE  # the words may name folders
        write_audit(folder / FOLDER, report)
        say(f"audit of copies: {folder / FOLDER / 'report.md'}\n{report['verdict']}")
        return f"{FOLDER}/report.json"

    def _set_up(self) -> None:
        """RunError for data that is not there, is not that of the checkpoint, or has too few people."""
        if self.data is None:
            raise MissingDataError("the checkpoint names no data")
        if not (store := self.data.address.folder).is_dir():
            raise MissingDataError(f"no prepared data at {store}")
        if not hasattr(self.data, "spec"):
            self.data.setup("sample")
        refuse_unlike("the checkpoint", self.trained, self.data.spec, FACTS_OF_IMAGES)
        if why := why_not(self.data):
            raise InputError(why)

    def _report(self, folder: Path) -> dict[str, Any]:
        assert self.data is not None
        return audit(images_in(folder, self.data), self.data, self.facts)[0]


def images_in(folder: Path, data: TrainingData, num: int | None = None) -> Images:
    """The images of a folder of samples: those of its manifest, or all that can be read where it has none."""
    if (folder / "manifest.csv").is_file():
        return read_samples(folder, spec_of(folder) or data.spec).images
    return images_of_folder("samples", folder, data.spec, data.brought, num, option="--samples")
