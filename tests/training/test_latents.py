"""The latent store gives what encoding would, from a file that is mapped and mended; scales have closed forms."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.errors import InputError
from lit_medgen.networks import Autoencoder
from lit_medgen.training import latents
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.latent_scale import LatentScale, moments
from lit_medgen.training.latents import LatentStore, encoded, kept_of

PER_RECORD = {"train": 3, "val": 1}
NUM_RECORDS = 9
SIZE = 16


class Distributions(FirstStage):
    """An untrained autoencoder whose latents are distributions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.network = Autoencoder(2, latent_channels=4, channels=(8, 16), attention=(False, True), head_channels=8)
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.num_encoded = 0
        self.eval()

    latent_shape = (2, SIZE // 2, SIZE // 2)

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def kept(self, images: Tensor) -> Tensor:
        self.num_encoded += len(images)
        return self.network.encode(images) * torch.tensor([1.0, 3, 1, 1])[:, None, None] - 0.5

    def latents(self, kept: Tensor, sample: bool = False) -> Tensor:
        mean, log_variance = kept.chunk(2, dim=1)
        return mean + (log_variance / 2).exp() * torch.randn_like(mean) if sample else mean

    def encode(self, images: Tensor) -> Tensor:
        return self.latents(self.kept(images))

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class Slices:
    """Slices of some records, with what a store asks of data."""

    digest = "of the data"

    def __init__(self, cache: Path, num: int = NUM_RECORDS) -> None:
        self.cache, self.num, self.read = cache, num, list[str]()
        self.spec = DataSpec(1, (SIZE, SIZE), (1.0, 1.0))

    def people(self, split: str) -> dict[str, str]:
        return {f"{split}{i}": f"person {i}" for i in range(self.num)}

    def stored(self, split: Any, first: int = 0) -> Iterator[Batch]:
        for key in list(self.people(split))[first:]:
            self.read.append(key)
            num = PER_RECORD[split]
            generator = torch.Generator().manual_seed(int(key[-1]) + 100 * num)
            image = torch.rand(num, 1, SIZE, SIZE, generator=generator) * 2 - 1
            condition = Condition(slice_index=5 + torch.arange(num)[:, None])
            yield Batch(image, [key] * num, torch.eye(4).expand(num, 4, 4), condition)

    def seen(self, split: Any) -> list[tuple[str, int]]:
        return [(key, 5 + i) for key in self.people(split) for i in range(PER_RECORD[split])]


class Strategy:
    """Processes that are threads."""

    def __init__(self, num: int) -> None:
        self.barrier, self.decisions = threading.Barrier(num, timeout=20), list[bool]()

    def reduce_boolean_decision(self, decision: bool) -> bool:
        self.decisions.append(decision)
        self.barrier.wait()
        found = all(self.decisions[-self.barrier.parties :])
        self.barrier.wait()
        return found

    def broadcast(self, value: Any) -> Any:
        return value


class Trainer:
    """What a store and a scale ask of a trainer."""

    is_global_zero, global_step = True, 0

    def __init__(self, local_rank: int = 0, strategy: Strategy | None = None) -> None:
        self.local_rank, self.strategy, self.loggers = local_rank, strategy or Strategy(1), [self]
        self.logged: dict[str, float] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.logged |= values


@pytest.fixture(scope="module")
def first_stage() -> Distributions:
    return Distributions()


@pytest.fixture
def data(tmp_path: Path) -> Any:
    return Slices(tmp_path)


@pytest.fixture
def store(first_stage: Distributions, data: Any) -> LatentStore:
    return LatentStore.of_data(first_stage, data, Trainer())  # type: ignore[arg-type]


def images(data: Any) -> Tensor:
    return torch.cat([batch.image for split in PER_RECORD for batch in data.stored(split)])


def test_rows_are_what_encoding_gives_bit_for_bit(first_stage: Distributions, data: Any, store: LatentStore) -> None:
    assert len(store) == NUM_RECORDS * sum(PER_RECORD.values())
    batches = [batch for split in PER_RECORD for batch in data.stored(split)]
    for batch in [*batches, Batch.join(batches[::-1])]:  # of 3, of 1 and of all, in another order
        with torch.autocast("cpu", torch.bfloat16):
            expected = encoded(first_stage, batch.image)
        assert torch.equal(store(batch), expected)
        assert torch.equal(kept_of(first_stage, batch), expected)
    torch.testing.assert_close(store(batches[0]), first_stage.kept(batches[0].image), atol=1e-5, rtol=0)
    keys = ["train4", "val2", "train0"]
    assert torch.equal(torch.cat(list(store.pieces(keys))), store.read(store.rows(keys)))
    assert torch.equal(store.read(store.rows(["val2"])), store(next(data.stored("val", 2))))


def test_rows_are_mapped_not_copied(store: LatentStore) -> None:
    assert isinstance(store.array, np.memmap)
    sent = pickle.dumps(store)
    assert len(sent) < 500
    again = pickle.loads(sent)
    assert isinstance(again.array, np.memmap)
    assert torch.equal(again.read([7, 2]), store.read([7, 2]))


@pytest.mark.parametrize("harm", ["cut", "changed", "no index", "half an index"])
def test_a_damaged_store_is_made_again(harm: str, first_stage: Distributions, data: Any, store: LatentStore) -> None:
    good, index = store.path.read_bytes(), store.path.with_suffix(".index.npz")
    del store
    path = LatentStore.address(first_stage, data)
    if harm == "cut":
        path.write_bytes(good[:-50])
    elif harm == "changed":
        path.write_bytes(good[:-50] + b"!" + good[-49:])
    elif harm == "no index":
        index.unlink()
    else:
        index.write_bytes(index.read_bytes()[:100])
    again = LatentStore.of_data(first_stage, data, Trainer())  # type: ignore[arg-type]
    assert (path.read_bytes(), again.whole) == (good, True)
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([path.name, index.name])
    written = path.stat().st_mtime_ns
    LatentStore.make(first_stage, data, path)
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("num_pieces", [1, 2])
def test_a_killed_process_is_gone_on_from(num_pieces: int, first_stage: Distributions, data: Any) -> None:
    path = LatentStore.address(first_stage, data)
    work = LatentStore.making(first_stage, data, path)
    done = [next(work) for _ in range(num_pieces)]
    assert done == [16, 32][:num_pieces]
    work.close()
    (part,) = path.parent.iterdir()
    with part.open("ab") as file:
        file.write(bytes(100))  # a row that is not whole
    part.rename(part.with_name(part.name.replace(f".{_pid(part)}@", ".999999999@")))
    before, data.read = first_stage.num_encoded, []
    store = LatentStore.of_data(first_stage, data, Trainer())  # type: ignore[arg-type]
    assert first_stage.num_encoded - before == 16 * (3 - num_pieces) + 16  # and one image, for the shape
    assert "train4" not in data.read[1:]
    assert torch.equal(store.read(range(len(store))), encoded(first_stage, images(data)))


def _pid(part: Path) -> str:
    return part.name.rpartition("@")[0].rpartition(".")[2]


def test_others_wait_until_the_first_process_has_made_it(
    first_stage: Distributions, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "TURN_S", 0)  # they are told after every piece
    strategy, before, found = Strategy(2), first_stage.num_encoded, list[LatentStore]()

    def process(rank: int) -> None:
        found.append(LatentStore.of_data(first_stage, data, Trainer(rank, strategy)))  # type: ignore[arg-type]

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first_stage.num_encoded - before == 16 * 4  # once
    assert torch.equal(*(store.read(range(5)) for store in found))
    assert len(strategy.decisions) >= 6  # several turns


def test_address_is_that_of_weights_data_and_people(data: Any, tmp_path: Path) -> None:
    first_stage, address = Distributions(), LatentStore.address
    found = {address(first_stage, data), address(Distributions(), data)}
    assert len(found) == 1
    found.add(address(first_stage, Slices(tmp_path, NUM_RECORDS - 1)))  # type: ignore[arg-type]
    data.digest = "of other data"
    found.add(address(first_stage, data))
    next(first_stage.parameters()).data[0] += 1
    found.add(address(first_stage, data))
    assert len(found) == 4


@pytest.mark.parametrize("channels", [1, 2])
def test_normalised_training_latents_have_mean_0_and_deviation_1(
    channels: int, first_stage: Distributions, data: Any, store: LatentStore
) -> None:
    scale, trainer = LatentScale(channels), Trainer()
    z = first_stage.latents(store.read(store.rows(data.people("train"))))
    assert torch.equal(scale.normalise(z), z)
    scale.measure(store, first_stage, data.people("train"), trainer)  # type: ignore[arg-type]
    normal = scale.normalise(z).double()
    of = normal.transpose(0, 1).flatten(1) if channels > 1 else normal.flatten()[None]
    torch.testing.assert_close(of.mean(1), torch.zeros(channels).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(of.std(1, correction=0), torch.ones(channels).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(scale.denormalise(scale.normalise(z)), z)
    scale.log(trainer)  # type: ignore[arg-type]
    logged = trainer.logged["latent/scale" if channels == 1 else "latent/scale_max"]
    assert logged == scale.scale.max().item()


def test_sampled_latents_have_the_encoders_variance_too(
    first_stage: Distributions, data: Any, store: LatentStore
) -> None:
    kept = store.read(store.rows(data.people("train")))
    expected = [first_stage.latents(kept, sample=True) for _ in range(200)]
    drawn = torch.stack(expected).transpose(0, 2).flatten(1).double()
    mean, deviation = moments(first_stage, kept.split(5), per_channel=True, sample=True)
    torch.testing.assert_close(mean, drawn.mean(1), atol=0.02, rtol=0)
    torch.testing.assert_close(deviation, drawn.std(1), rtol=0.005, atol=0)
    of_means = moments(first_stage, [kept], per_channel=True)[1]
    noise = kept[:, 2:].double().exp().transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(deviation.square() - of_means.square(), noise)


def test_a_checkpoints_scale_stays(first_stage: Distributions, data: Any, store: LatentStore) -> None:
    scale, resumed = LatentScale(), LatentScale()
    scale.measure(store, first_stage, ["train0"], Trainer())  # type: ignore[arg-type]
    resumed.load_state_dict(scale.state_dict())
    resumed.measure(store, first_stage, ["train1"], Trainer())  # type: ignore[arg-type]
    assert torch.equal(resumed.scale, scale.scale)


@pytest.mark.parametrize("value", [0.25, torch.nan])
def test_a_channel_without_a_scale_is_refused(value: float, store: LatentStore, data: Any) -> None:
    class Broken(Distributions):
        def latents(self, kept: Tensor, sample: bool = False) -> Tensor:
            return torch.stack([kept[:, 0], torch.full_like(kept[:, 1], value)], dim=1)

    with pytest.raises(InputError, match=r"model.init_args.first_stage: .* channels \[1\] of the latents have mean"):
        LatentScale(2).measure(store, Broken(), data.people("train"), Trainer())  # type: ignore[arg-type]
