"""Text embeddings in a safetensors file, made once by any encoder, so that no text encoder runs in training.

    tokens      n l d, float16 or float32: the embedded tokens of n texts
    mask        n l, bool: which of them are real, the others being padding
    null        l d, null_mask l: the same of the empty text, which stands for an absent one
    metadata    encoder, encoder_sha256; names, a JSON list of n names, of which several may be equal

Shapes: n texts, l tokens, d channels of a token. `docs/text.md` shows how to make one.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError, MissingDataError, describe

TYPES = {"tokens": ("F16", "F32"), "mask": ("BOOL",), "null": ("F16", "F32"), "null_mask": ("BOOL",)}
"""Tensor -> how it may be stored."""
SHAPES = {"tokens": "n l d", "mask": "n l", "null": "l d", "null_mask": "l"}
MAX_TOKENS, MAX_CHANNELS = 4096, 16384
"""Of a text: attention to more does not fit any device, and the file is not of embeddings."""
HASHED = 64
"""Texts, evenly spread, of which the digest holds the tokens."""
REMEDY = "make the file as docs/text.md says"


class TextEmbeddings:
    """A file of text embeddings, of which texts are read one by one.

    Opening it checks all but the tokens of the texts, which are checked when they are read.

    Args:
        path: the file.
        key: the key or option that gives it, for messages.

    Attributes:
        encoder: name of what made the embeddings.
        encoder_sha256: hash of its weights, in hexadecimal.
        names: n, of the texts; several texts may have one.
        size: tokens of a text, channels of a token.

    Raises:
        MissingDataError: there is no file.
        InputError: it is not of this format.
    """

    def __init__(self, path: Path | str, key: str) -> None:
        self.path, self.key = Path(path), key
        self._handle: Any = None
        if not self.path.is_file():
            raise MissingDataError(f"{key}: no file '{path}'; {REMEDY}.")
        try:
            self.size = self._checked_shapes()
            self.encoder, self.encoder_sha256, self.names = self._metadata(self._file.metadata() or {})
            self._mask = self._file.get_tensor("mask")
            self.null = self._padded(self._file.get_tensor("null"), self._file.get_tensor("null_mask"))
            if not self._mask.any(1).all():
                raise ValueError(f"text number {int(self._mask.any(1).argmin())} has no token; leave it out")
        except (SafetensorError, OSError, ValueError) as error:
            raise self._refusal(error) from error

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def rows(self) -> dict[str, list[int]]:
        """Name -> numbers of the texts of that name, in the order of the file."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            rows.setdefault(name, []).append(row)
        return rows

    def read(self, row: int) -> Tensor:
        """1 l d, float32: the tokens of a text; NaN marks padding. InputError for a token that is not finite."""
        try:
            return self._padded(self._file.get_slice("tokens")[row], self._mask[row])[None]
        except (SafetensorError, OSError, ValueError) as error:
            raise self._refusal(f"text number {row}: {describe(error)}") from error

    def verify(self) -> None:
        """Reads every text; InputError for a token that is not finite."""
        for row in range(len(self)):
            self.read(row)

    def described_in(self, spec: DataSpec) -> DataSpec:
        """The spec with the facts of these texts."""
        return replace(spec, text_encoder=self.encoder, text_encoder_sha256=self.encoder_sha256, text_size=self.size)

    @cached_property
    def digest(self) -> str:
        """Hash of the file but for most tokens, which may be gigabytes: other texts have another, as good as always."""
        digest = hashlib.sha256(json.dumps([self.encoder, self.encoder_sha256, self.names]).encode())
        digest.update(self._mask.tobytes() + self.null.numpy().tobytes())
        for row in np.linspace(0, len(self) - 1, min(len(self), HASHED)).astype(int).tolist():
            digest.update(self.read(row).numpy().tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}  # a process of its own maps the file again

    @property
    def _file(self) -> Any:
        """The file, mapped into memory."""
        if self._handle is None:
            self._handle = safe_open(self.path, "numpy")
        return self._handle

    def _refusal(self, problem: Exception | str) -> InputError:
        text = problem if isinstance(problem, str) else describe(problem)
        return InputError(f"{self.key}: {self.path}: {text.rstrip('.')}; {REMEDY}.")

    def _checked_shapes(self) -> tuple[int, int]:
        """Tokens and channels; ValueError for tensors that do not belong together."""
        if lost := sorted(TYPES.keys() - set(self._file.keys())):
            raise ValueError(f"no tensor {lost[0]!r}")
        shapes: dict[str, list[int]] = {}
        for name, types in TYPES.items():
            found = self._file.get_slice(name)
            shapes[name] = found.get_shape()
            if found.get_dtype() not in types:
                raise ValueError(f"{name} is stored as {found.get_dtype()}; expected {' or '.join(types)}")
            if len(shapes[name]) != len(SHAPES[name].split()):
                raise ValueError(f"{name} has shape {shapes[name]}; expected {SHAPES[name]}")
        num, tokens, channels = shapes["tokens"]
        lengths = {"n": num, "l": tokens, "d": channels}
        for name, shape in shapes.items():
            if shape != (expected := [lengths[letter] for letter in SHAPES[name].split()]):
                raise ValueError(f"{name} has shape {shape}, but tokens have {shapes['tokens']}; expected {expected}")
        if num < 1 or not 1 <= tokens <= MAX_TOKENS or not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(
                f"{num} texts of {tokens} tokens of {channels} channels; expected at least 1 of each, and at most "
                f"{MAX_TOKENS} tokens of {MAX_CHANNELS}"
            )
        return tokens, channels

    def _metadata(self, metadata: dict[str, str]) -> tuple[str, str, list[str]]:
        """Encoder, its hash, and the names; ValueError for what is missing or of another form."""
        if lost := [name for name in ("encoder", "encoder_sha256", "names") if not metadata.get(name, "").strip()]:
            raise ValueError(f"no {lost[0]!r} in its metadata")
        if not re.fullmatch("[0-9a-f]{64}", digest := metadata["encoder_sha256"].strip().lower()):
            raise ValueError("its metadata has an encoder_sha256 that is not 64 hexadecimal digits")
        try:
            names = json.loads(metadata["names"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its metadata has names that are no JSON ({describe(error)})") from error
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError("its metadata has names that are no JSON list of names")
        num = self._file.get_slice("tokens").get_shape()[0]
        if len(names) != num:
            raise ValueError(f"its metadata has {len(names)} names for {num} texts; name each")
        return metadata["encoder"].strip(), digest, names

    @staticmethod
    def _padded(values: np.ndarray, mask: np.ndarray) -> Tensor:
        """l d, float32, NaN where a token is padding; ValueError for a real one that is not finite."""
        with np.errstate(invalid="ignore"):  # what padding holds does not matter
            tokens = values.astype(np.float32)
        if bad := int((~np.isfinite(tokens[mask])).sum()):
            raise ValueError(f"{bad} numbers of its tokens are NaN or infinite (store float32 if float16 is too small)")
        tokens[~mask] = np.nan
        return torch.from_numpy(tokens)


def refuse_other_encoder(trained: DataSpec, found: DataSpec, source: str) -> None:
    """InputError if texts are not embedded as those that a model was trained with.

    Args:
        trained: of the data that the model was trained on.
        found: of the texts that it meets now.
        source: the key or option that gives them, for the message.
    """
    ours, theirs = _encoder(trained), _encoder(found)
    if ours != theirs:
        raise InputError(
            f"{source}: texts by {theirs}, but the model was trained with {ours}; embed them as those were."
        )
    if trained.text_size and (found.text_size[0] > trained.text_size[0] or found.text_size[1] != trained.text_size[1]):
        raise InputError(
            f"{source}: texts of {found.text_size[0]} tokens of {found.text_size[1]} channels, but the model was "
            f"trained with {trained.text_size[0]} of {trained.text_size[1]}; embed them as those were."
        )


def _encoder(spec: DataSpec) -> str:
    return f"{spec.text_encoder} ({spec.text_encoder_sha256[:12]})" if spec.text_encoder else "no encoder"
