"""The script of docs/text.md makes a file that is read, with any encoder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import pytest
import torch
from tiny_run import ROOT
from torch import Tensor, nn

from lit_medgen.text_embeddings import TextEmbeddings

CHANNELS = 4


class Tokenizer:
    """A token for each letter."""

    @classmethod
    def from_pretrained(cls, name: str) -> Self:
        return cls()

    def __call__(self, texts: list[str], max_length: int, **_: Any) -> dict[str, Tensor]:
        mask = torch.tensor([[k <= len(text) for k in range(max_length)] for text in texts])
        return {"input_ids": mask.long(), "attention_mask": mask.long()}


class Encoder(nn.Embedding):
    """A vector for each token."""

    @classmethod
    def from_pretrained(cls, name: str) -> Self:
        return cls(2, CHANNELS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=super().forward(input_ids))


def test_the_script_of_the_page_makes_a_file_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "text.md").read_text(), re.DOTALL)
    assert len(script.strip().splitlines()) <= 16
    transformers = ModuleType("transformers")
    monkeypatch.setattr(transformers, "AutoTokenizer", Tokenizer, raising=False)
    monkeypatch.setattr(transformers, "CLIPTextModel", Encoder, raising=False)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    texts = TextEmbeddings(tmp_path / "texts.safetensors", "text")
    assert texts.size == (77, CHANNELS)
    assert texts.rows == {"sub-01/T1w": [0, 1], "sub-02/T1w": [2]}
    assert [int((~texts.read(row).isnan()).all(-1).sum()) for row in range(3)] == [19, 19, 14]
    assert (~texts.null.isnan()).all(-1).sum() == 1
