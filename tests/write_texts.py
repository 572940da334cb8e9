"""Writes files of text embeddings, whole ones and others, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ENCODER, SHA256 = "toy", "0" * 63 + "1"
TOKENS, CHANNELS = 3, 2


def tensors(num: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The embeddings of some texts, each with one token more than the text before it, up to all."""
    random = np.random.default_rng(seed)
    mask = np.arange(TOKENS) <= np.arange(num)[:, None] % TOKENS
    values = random.normal(size=(num, TOKENS, CHANNELS)).astype(np.float16)
    null = random.normal(size=(TOKENS, CHANNELS)).astype(np.float16)
    return {"tokens": values, "mask": mask, "null": null, "null_mask": np.arange(TOKENS) < 1}


def write_texts(path: Path, names: Sequence[str], /, **changed: Any) -> Path:
    """A file of texts of these names; `changed`: tensors or entries of the metadata, None to leave one out."""
    metadata: Mapping[str, Any] = {"encoder": ENCODER, "encoder_sha256": SHA256, "names": json.dumps(list(names))}
    arrays = tensors(len(names))
    everything: dict[str, Any] = {**arrays, **metadata, **changed}
    kept = {name: value for name, value in everything.items() if value is not None}
    stored = {name: np.ascontiguousarray(value) for name, value in kept.items() if isinstance(value, np.ndarray)}
    save_file(stored, path, {name: value for name, value in kept.items() if isinstance(value, str)})
    return path
