"""The verb `anomalies`, on a trainer, so that it runs on its devices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np

from lit_medgen.batch import DataSpec, Requests, Split
from lit_medgen.checkpoints import behind_link
from lit_medgen.diffusion import Resynthesis
from lit_medgen.errors import InputError
from lit_medgen.evaluation.anomalies import (
    Mapped,
    detectors,
    lesion_classes,
    mean_image,
    prevalence,
    scores_of,
)
from lit_medgen.evaluation.anomalies import (
    Mapping as Maps,
)
from lit_medgen.evaluation.anomaly_page import as_markdown, save_examples
from lit_medgen.files import Outputs, as_csv, file_hash, write_atomically
from lit_medgen.images.nifti import write_nifti
from lit_medgen.images.origin import SHORT
from lit_medgen.loading import restore
from lit_medgen.output import say
from lit_medgen.sample_files import SampleFile, format_for
from lit_medgen.sampling import FACTS_OF_IMAGES, checked_attributes
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method
from lit_medgen.verbs import refuse_below_one, refuse_other_data, set_up

if TYPE_CHECKING:
    from data_modules.base import MedicalDataModule

FILES = ("report.json", "report.md", "maps.csv", "anomalies.png", "maps/*.nii.gz", "maps/*.png")


class Anomalies(L.Trainer):
    """Lightning's trainer with a verb that maps what a model did not expect in people's images."""

    run_name: str

    def anomalies(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        out: str = "anomalies",
        way: Literal["inversion", "noise"] | None = None,
        level: float = 0.5,
        num_steps: int = 100,
        attributes: dict[str, float | None] | None = None,
        guidance: float = 3.0,
        repeats: int = 1,
        lesion: list[str] | str | None = None,
        false_positives: float = 0.01,
        num: int | None = None,
        batch_size: int = 16,
    ) -> None:
        """Map what a diffusion model did not expect in images of test people: maps, report.json, report.md.

        Args:
            model: the method; from the checkpoint unless given.
            datamodule: the data: maps are of test people, thresholds from validation people.
            ckpt_path: the checkpoint of the model.
            out: folder of maps and report.
            way: how images come to noise: by inversion, whose way back is guided to `attributes`, or by plain noise;
                None: inversion if there are attributes, else noise.
            level: the time in (0, 1] at which images turn around.
            num_steps: steps of each way.
            attributes: what the healthy counterparts should show, e.g. '{"lesion": 0}', of a model that is told it.
            guidance: scale of classifier-free guidance to the attributes; 1 is the conditional model.
            repeats: counterparts of each image over which maps are means; of plain noise each has its own.
            lesion: names of the classes of label maps that are lesions; None: the second of two.
            false_positives: the share of voxels of validation people without lesions that the threshold lets pass.
            num: people of each part at most; None: all.
            batch_size: images at once.
        """
        if datamodule is None or ckpt_path is None:
            raise InputError("anomalies: give --ckpt_path FILE, and --config FILE with a `data` section.")
        refuse_below_one(batch_size=batch_size, repeats=repeats, num=num)
        if not 0 < false_positives < 1:
            raise InputError(f"--false_positives is {false_positives}; give a share between 0 and 1.")
        generator = able(model)
        if self.is_global_zero:
            _files(Path(out)).check()
        data = set_up(datamodule)
        ckpt_path = behind_link(ckpt_path)
        spec = refuse_other_data(ckpt_path, data.spec, FACTS_OF_IMAGES) or data.spec
        asked = checked_attributes(generator, attributes or {}, spec)
        noised = way == "noise" or (way is None and not asked)
        how = _checked(Resynthesis, level=level, num_steps=num_steps, noised=noised, guidance=guidance)
        classes = lesion_classes(data.spec.classes, [lesion] if isinstance(lesion, str) else lesion)
        if not self.is_global_zero:
            return
        restore(generator, Path(ckpt_path))
        generator.to(self.strategy.root_device).eval()
        maps = Maps(how, asked, repeats, classes, batch_size)
        work = _Work(generator, data, maps, Path(out), num)
        work.run(ckpt_path, self.run_name, false_positives)


class _Work:
    """Makes the maps of test people, their scores and the files."""

    def __init__(self, model: Generator, data: MedicalDataModule, maps: Maps, out: Path, num: int | None) -> None:
        self.model, self.data, self.maps, self.out, self.num = model, data, maps, out, num

    def run(self, ckpt_path: str, name: str, share: float) -> None:
        """All files; without marked lesions, or healthy validation people, maps without scores."""
        if not self.data.people("test"):
            raise InputError("anomalies: there are no test people; train with other data.init_args.fractions.")
        outputs = _files(self.out)
        outputs.claim()
        outputs.clear()
        (self.out / "maps").mkdir(parents=True, exist_ok=True)
        found = self._found("test")
        self._write(found, file_hash(Path(ckpt_path)))
        report = self._facts(found, ckpt_path, name) | self._scores(found, share)
        write_atomically(self.out / "report.json", json.dumps(report, indent=2))
        write_atomically(self.out / "report.md", as_markdown(report))
        save_examples(self.out / "anomalies.png", found)
        outputs.end()
        say(f"maps of {len(found)} images of patients in {self.out}, as private as the scans; {self.out}/report.md")

    def _found(self, split: Split) -> list[Mapped]:
        requests: Requests = self.data.requests(split)
        if self.num is not None:
            people, order = self.data.people(split), list[int]()
            first = dict.fromkeys(people.values())
            kept = set(list(first)[: self.num])
            order = [i for i in range(len(requests)) if people[requests.read(i).key[0]] in kept]
            requests = requests.chosen(order, [requests.seeds[i] for i in order])
        return list(self.maps.of(self.model, requests, self.data.people(split)))

    def _scores(self, found: Sequence[Mapped], share: float) -> dict[str, Any]:
        """The scores of the model and of the nulls; why there are none, in words."""
        marked = [one for one in found if one.lesion is not None]
        if not any(one.has_lesion for one in marked):
            return {"unscored": "no label map of the test people marks a lesion"}
        healthy = [one for one in self._found("val") if one.lesion is not None and not one.has_lesion]
        if not healthy:
            return {"unscored": "no validation person is without a lesion, so there is no threshold"}
        scored = {name: scores_of(marked, of, healthy, share) for name, of in detectors(mean_image(self.data)).items()}
        counts = {"num_healthy": len(healthy), "share": share, "prevalence": prevalence(marked)}
        return {"detectors": scored, "lesions": [self.data.spec.classes[k] for k in self.maps.classes]} | counts

    def _facts(self, found: Sequence[Mapped], ckpt_path: str, name: str) -> dict[str, Any]:
        how = self.maps.how
        return {
            "method": type(self.model).__name__,
            "name": name,
            "source": ckpt_path,
            "data": self.data.digest,
            "way": "noise" if how.noised else "inversion",
            "level": how.level,
            "num_steps": how.num_steps,
            "repeats": self.maps.num_repeats,
            "attributes": {key: value for key, value in self.maps.attributes.items() if value == value},
            "guidance": how.guidance if self.maps.attributes else None,
            "num": len(found),
            "num_people": len({one.person for one in found}),
        }

    def _write(self, found: Sequence[Mapped], model_hash: str) -> None:
        """The map and the counterpart of each image as files, and a table of them."""
        spec: DataSpec = self.data.spec
        file, rows = SampleFile(format_for(spec, None), spec, "reconstruction", model_hash), list[Mapping[str, Any]]()
        for k, one in enumerate(found):
            names = f"{k:04d}_counterpart", f"{k:04d}_map.nii.gz"
            file.write(self.out / "maps", names[0], one.counterpart, one.affine)
            values = one.map.numpy().astype(np.float32)
            affine = (spec.affine() if one.affine is None else one.affine).double().numpy()
            write_nifti(
                self.out / "maps" / names[1],
                values if values.ndim == 3 else values[..., None],
                affine,
                SHORT["reconstruction"],
            )
            rows.append({"file": names[1], "key": one.key, **_summary(one)})
        write_atomically(self.out / "maps.csv", as_csv(rows, list(rows[0])))


def _summary(one: Mapped) -> dict[str, Any]:
    """Numbers of a map, for the table."""
    inside = one.foreground
    found: dict[str, Any] = {"mean_map": f"{float(one.map[inside].mean()) if inside.any() else 0:.6g}"}
    if one.lesion is not None:
        found["lesion_voxels"] = int(one.lesion.sum())
        found["mean_map_of_lesion"] = f"{float(one.map[one.lesion].mean()):.6g}" if one.has_lesion else ""
    return found


def _files(out: Path) -> Outputs:
    return Outputs(out, "anomalies", FILES)


def able(model: Method) -> Generator:
    """The model, if it makes counterparts from nothing but an image; InputError otherwise."""
    kind = type(model)
    if not isinstance(model, Generator) or type(model).counterparts is Generator.counterparts:
        raise InputError(
            f"model.class_path: {kind.__name__} has no way from an image to noise and back; take a DDPM or an LDM."
        )
    if model.required:
        raise InputError(
            f"model.class_path: {kind.__name__} makes images from {' and '.join(model.required)}, which show what is "
            "there; take a model of images alone."
        )
    return model


def _checked(make: type[Resynthesis], **arguments: Any) -> Resynthesis:
    """What the options make; a value that is refused is named as its option."""
    try:
        return make(**arguments)
    except ValueError as error:
        raise InputError(f"--{error}") from error
