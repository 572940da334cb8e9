"""Writes a prepared store: every scan once, in several processes, and again only what is missing or was changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from joblib import delayed

from data_modules.parallel import in_parallel
from data_modules.records import (
    Record,
    image_hash,
    images_of,
    person_hash,
    table,
    text_hash,
    write_changed,
    write_records,
)
from data_modules.sources import IMAGE, Rejected, Scan
from data_modules.store import StoreAddress
from data_modules.volume_files import take_over, whole_files
from lit_medgen.errors import NO_SPACE, InputError, RunError, describe, raise_fault_of_machine
from lit_medgen.files import Outputs, remove_stale, write_atomically
from lit_medgen.images.png import write_figure

FILES = (
    *("preprocessing.json", "manifest.csv", "facts.npz", "rejected.csv", "keys.json", "nodules.csv"),
    "left_out.json",
    *("volumes/*.npy", "volumes/*.json", "figures/*.png"),
)


def prepare(
    address: StoreAddress,
    scans: Sequence[Scan],
    rejected: Iterable[Rejected] = (),
    num_jobs: int = -1,
    verify: bool = False,
    figures: bool = False,
) -> tuple[list[Record], list[Rejected]]:
    """Writes the store for these scans; returns a record of each file that was accepted, and what was rejected.

    Args:
        address: where and how.
        scans: raw images.
        rejected: what the layout's reader already refused.
        num_jobs: joblib workers, -1 for one per core; a Dask or Ray backend of joblib is used if one is active.
        verify: read every raw file, and every volume already there, and compare its SHA-256; a bad one is made again.
        figures: plot every image as it came and as it was prepared.
    """
    _refuse_missing(address, scans)
    folder = address.folder
    _claim(address, figures)
    known = {} if verify else _known_keys(folder)
    others = address.others
    stamps = [scan.stamp() for scan in scans]
    jobs = (
        delayed(_prepare_one)(address, scan, verify, figures, known.get(stamp, ""), others)
        for scan, stamp in zip(scans, stamps, strict=True)
    )
    results = in_parallel(jobs, len(scans), "prepare", num_jobs)
    accepted: dict[str, Record] = {}
    refused = list(rejected)
    keys: dict[str, str] = {}
    for scan, stamp, result in zip(scans, stamps, results, strict=True):
        if isinstance(result, Rejected):
            refused.append(result)
            continue
        if stamp:
            keys[stamp] = result.key
        if result.key in accepted:
            refused.append(Rejected(str(scan.sources[IMAGE]), "the same image as another file of this data set"))
        else:
            accepted[result.key] = result
    records = sorted(accepted.values(), key=lambda record: (record.person, record.session, record.key))
    write_changed(folder / "rejected.csv", table([asdict(row) for row in refused], ["source", "reason"]))
    write_records(folder, records)
    write_changed(folder / "keys.json", json.dumps(keys, indent=0, sort_keys=True))
    return records, refused


def _refuse_missing(address: StoreAddress, scans: Sequence[Scan]) -> None:
    """InputError for what the recipe wants beside images and no scan has."""
    for name in address.preprocessing.needs if scans else ():
        if not any(name in scan.beside for scan in scans):
            there = ", ".join(sorted({other for scan in scans for other in scan.beside})) or "nothing"
            raise InputError(
                f"data.init_args: no image of this data set has a '{name}' beside it, which its preprocessing asks "
                f"for (there is {there}); name what is there, or leave it out."
            )


def _claim(address: StoreAddress, figures: bool) -> None:
    """Makes the store's folders; InputError if they cannot be made, or hold files of others."""
    folder, recipe = address.folder, json.dumps(address.recipe, indent=2)
    described = folder / "preprocessing.json"
    if not described.is_file() or described.read_text(errors="replace") != recipe:  # which proves that it is a store
        Outputs(folder, "prepare", FILES, "move it, or give another data.init_args.store_dir").check()
    try:
        for name in ("volumes", *(["figures"] if figures else [])):
            (folder / name).mkdir(parents=True, exist_ok=True)
            remove_stale(folder / name)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise InputError(
            f"data.init_args.store_dir: cannot make {folder} ({describe(error)}); give a folder that can be written."
        ) from error
    remove_stale(folder)
    write_changed(described, recipe)


def _known_keys(folder: Path) -> dict[str, str]:
    """What the last preparation left, or nothing."""
    try:
        kept = json.loads((folder / "keys.json").read_text())
    except (OSError, ValueError):
        return {}
    known = kept.items() if isinstance(kept, dict) else ()
    return {stamp: key for stamp, key in known if isinstance(key, str) and re.fullmatch(r"[0-9a-f]{16}", key)}


def _prepare_one(
    address: StoreAddress, scan: Scan, verify: bool, figures: bool, key: str, others: Sequence[Path]
) -> Record | Rejected:
    """Whatever the image itself raises is its rejection; a fault of the machine ends the preparation."""
    try:
        key = key or _key(address, scan)
        path = address.folder / "volumes" / f"{key}.npy"
        facts_path = path.with_suffix(".json")
        if not whole_files(path, verify) and not take_over(path, others, verify):
            facts = address.preprocessing.write(scan, path, address.stacked)
            write_atomically(facts_path, json.dumps(facts | {"person": person_hash(scan.person)}))
        facts = json.loads(facts_path.read_text())
        if figures:
            figure = address.preprocessing.plot(scan, path, address.stacked, facts)
            write_figure(address.folder / "figures" / f"{path.stem}.png", figure, dpi=90)
    except RunError:
        raise
    except Exception as error:
        raise_fault_of_machine(error, scan.path, address.folder)
        return Rejected(str(scan.sources[IMAGE]), _reason(error))
    record = Record(
        key,
        person_hash(scan.person),
        scan.session,
        facts["sha256"],
        facts.get("cut", np.nan),
        np.array(facts["affine"]) if scan.affine is None else scan.affine,
        scan.attributes,
        facts.get("tools", ""),
        facts.get("levels", 0),
        tuple(facts.get("beside", ())),
        {name: np.array(value, dtype=np.float64) for name, value in ({**facts.get("facts", {}), **scan.facts}).items()},
        text=text_hash(scan.text or ""),
        name=image_hash(scan.name or ""),
    )
    return replace(record, images=images_of(record, facts["images"])) if "images" in facts else record


def _reason(error: Exception) -> str:
    """What an image raised, as one line; readers name a bad file by a ValueError, of others the kind says more."""
    kind = "" if type(error) is ValueError or isinstance(error, OSError) else f"{type(error).__name__}: "
    return kind + describe(error)


def _key(address: StoreAddress, scan: Scan) -> str:
    digest = hashlib.sha256(json.dumps(address.recipe, sort_keys=True).encode())
    for name, source in scan.sources.items():
        digest.update(b"" if name == IMAGE else f"\n{name}\n".encode())
        for content in source.contents():
            digest.update(content)
    return digest.hexdigest()[:16]
