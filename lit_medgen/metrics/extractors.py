r"""What turns images into features: a network that has learned to tell the training people apart, or one from a file.

Scores of features are only as good as the features, and the Inception network that papers use knows no anatomy and
must be downloaded. So the default learns here, from the training people alone: of two neighbouring slices of one
person and those of others at the same height of the head, which belong together (contrastive learning: van den Oord et
al. 2018, eq. 4; Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", eq. 1).
That needs detail which is a person's own and no labels; position cannot help, being the same for all. `ranking` shows
on real people whether the features see what they should: a stronger blur, noise or shift is further away.

`lit_medgen.metrics.torchscript` says how a network of a file is called.

Shapes: n images, c channels, *s spatial axes, y x the plane, d features.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.axes import AXES
from lit_medgen.batch import Images, sent
from lit_medgen.files import write_atomically
from lit_medgen.metrics.features import Features, features_of, frechet_distance
from lit_medgen.metrics.known import as_images, blocks
from lit_medgen.metrics.paired import PerceptualDistance
from lit_medgen.metrics.torchscript import Network, from_file, perceptual_of_file

LEARNED = "learned"
MAX_DIMENSIONS = 16
NUM_STEPS = 400
PEOPLE_A_STEP = 32
TEMPERATURE = 0.1
DISTORTED_BYTES = 2**25
"""Of images in float32 that are distorted at a time: 4 volumes of 128^3, nine copies of each."""


@dataclass(frozen=True)
class CentreSlice:
    """Features of the middle slice of every volume; of a 2D image, of the image itself.

    Attributes:
        network: n c y x in [-1, 1] -> n d.
        source: which network it is, with hash.
        view: "axial", "coronal" or "sagittal"; "image" where images are 2D.
        classifier: n c y x in [-1, 1] -> n k, probabilities of classes; None where the network knows none.
    """

    network: Network
    source: str
    view: str
    classifier: Network | None = None

    @property
    def name(self) -> str:
        """What the report calls these features."""
        return f"{self.source}, middle {self.view} slice" if self.view in AXES else self.source

    def __call__(self, images: Tensor) -> Tensor:
        """n c *s in [-1, 1] -> n d."""
        return self._of_slices(self.network, images)

    def probabilities(self, images: Tensor) -> Tensor:
        """n c *s in [-1, 1] -> n k; only with a `classifier`."""
        assert self.classifier is not None
        return self._of_slices(self.classifier, images)

    def _of_slices(self, network: Network, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(some) for some in _slices(images, AXES.get(self.view)).split(64)])


@dataclass(frozen=True)
class AllViews:
    """Features of several views of an image, side by side; all of one network."""

    views: tuple[CentreSlice, ...]

    @property
    def name(self) -> str:
        """What the report calls these features."""
        return f"{self.views[0].source}, {', '.join(view.view for view in self.views)}"

    def __call__(self, images: Tensor) -> Tensor:
        """n c *s in [-1, 1] -> n d."""
        return torch.cat([view(images) for view in self.views], dim=1)


def extractors(
    source: str, train: Tensor | Images, num_real: int, cache: Path | None = None, device: torch.device | None = None
) -> dict[str, CentreSlice]:
    """View -> features of that view; one view, "image", of 2D images.

    Args:
        source: `LEARNED`, or a TorchScript file.
        train: images of the training people, one each, n c *s in [-1, 1].
        num_real: people that the features will be asked about. Learned features have a quarter as many dimensions: the
            distance of two sets from one distribution grows with dimensions squared over people.
        cache: folder where the learned network is kept, under the hash of what it was made from.
        device: where networks run on images of the CPU; None: where images are.
    """
    train = as_images(train)
    views = list(AXES) if train.read(range(1)).ndim == 5 else ["image"]
    if source == LEARNED:
        embed, name = learned(train, num_dimensions(num_real), cache)
        networks = {view: _standardised(embed, train, AXES.get(view)) for view in views}
        return {view: CentreSlice(_on(device, network), name, view) for view, network in networks.items()}
    network, classifier, name, _ = from_file(source)
    network, classifier = _on(device, network), classifier and _on(device, classifier)
    return {view: CentreSlice(network, name, view, classifier) for view in views}


def num_dimensions(num_real: int) -> int:
    """Of learned features that so many people will be asked about."""
    return max(2, min(MAX_DIMENSIONS, num_real // 4))


def _on(device: torch.device | None, network: Network) -> Network:
    """The network on slices of the CPU, without TF32 in convolutions, whose 10 bits would move the scores."""
    if device is None:
        return network

    def features(slices: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network(slices.to(device)).cpu()

    return features


def perceptual(
    source: str, train: Tensor | Images, cache: Path | None = None, dimensions: int = MAX_DIMENSIONS
) -> PerceptualDistance:
    """A distance of activations: of all convolutions of the learned network, or of what a file gives of each pixel.

    InputError for a file that gives averages over the image alone.

    Args:
        source: as of `extractors`.
        train: as of `extractors`.
        cache: as of `extractors`.
        dimensions: of the learned features; with those of `extractors` (`num_dimensions`) one network serves both.
    """
    train = as_images(train)
    if source != LEARNED:
        first = train.read(range(1))
        return perceptual_of_file(source, _slices(first, 2 if first.ndim == 5 else None))
    return _of_activations(*learned(train, dimensions, cache))


def untaught(channels: int) -> PerceptualDistance:
    """The same distance of a network of the learned one's shape that has learned nothing, for images of c channels."""
    return _of_activations(_embedding(channels, MAX_DIMENSIONS), "network that has learned nothing")


def _of_activations(network: nn.Sequential, name: str) -> PerceptualDistance:
    """The distance of the activations of all convolutions of a learned network."""

    def layers(slices: Tensor) -> list[Tensor]:
        outputs = accumulate(network, lambda values, layer: layer(values), initial=slices)
        return [found for layer, found in zip([None, *network], outputs, strict=True) if isinstance(layer, nn.SiLU)]

    return PerceptualDistance(layers, name, network)


def learned(train: Images, dimensions: int, cache: Path | None = None) -> tuple[nn.Sequential, str]:
    """The contrastive network of the training people, trained unless the cache has it, and its name with hash."""
    shape = train.read(range(1)).shape[1:]
    recipe = f"{dimensions} {NUM_STEPS} {PEOPLE_A_STEP} {TEMPERATURE} float64 {(len(train), *shape)}"
    made_from = hashlib.sha256(recipe.encode())
    for some in blocks(train):
        made_from.update(some.contiguous().numpy().data)
    digest = made_from.hexdigest()[:12]
    name = f"contrastive network of {len(train)} training images ({dimensions} features, SHA-256 {digest})"
    kept = cache / f"features-{digest}.pt" if cache else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _embedding(shape[0], dimensions)
        if kept and kept.exists():
            network.load_state_dict(torch.load(kept, weights_only=True))
            return network, name
        _teach(network, train)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(network.state_dict(), content)
        write_atomically(kept, content.getvalue())
    return network, name


def _embedding(channels: int, dimensions: int) -> nn.Sequential:
    """Strided convolutions, then what is left of the plane: a shift of the head must stay visible."""
    widths = [channels, 16, 32, 64]
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Conv2d(wide, narrow, 3, stride=2, padding=1), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(widths[-1] * 16, dimensions))


def _teach(network: nn.Module, train: Images) -> None:
    """On the CPU in float64: rounding of float32, which depends on threads and device, grows into other features."""
    network.double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    axes = list(AXES.values()) if train.read(range(1)).ndim == 5 else [None]
    for step in range(NUM_STEPS):
        people = torch.randperm(len(train))[:PEOPLE_A_STEP]
        pair = _pair(train, people, axes[step % len(axes)])
        a, b = (functional.normalize(network(slices.double())) for slices in pair)
        alike = a @ b.T / TEMPERATURE
        own = torch.arange(len(people))
        loss = functional.cross_entropy(alike, own) + functional.cross_entropy(alike.T, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.float()


def _pair(images: Images, people: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Two neighbouring slices of the middle half, the same two of all; of 2D images, the image moved a little."""
    if axis is None:
        step = torch.randint(-1, 2, (2,)).tolist()
        chosen = images.read(people.tolist())
        return chosen, chosen.roll(step, dims=(2, 3))
    length = images.read([0]).shape[axis + 2]
    off = int(torch.randint(-(length // 4), length // 4 + 1, ()))
    inwards = off + 1 if off < 0 else off - 1
    pairs: list[list[Tensor]] = [[], []]
    for person in people.tolist():  # one volume is in memory at a time
        volume = images.read([person])
        for slices, index in zip(pairs, (off, inwards), strict=True):
            slices.append(_slices(volume, axis, index).clone())
    return torch.cat(pairs[0]), torch.cat(pairs[1])


def _slices(images: Tensor, axis: int | None, off: int = 0) -> Tensor:
    """n c y x: the slice `off` the middle."""
    return images if axis is None else images.select(axis + 2, images.shape[axis + 2] // 2 + off)


def _standardised(network: nn.Module, train: Images, axis: int | None) -> Network:
    """Features with mean 0 and variance 1 on middle slices of the images: what was learned has no unit of its own."""
    with torch.no_grad():
        known = network(torch.cat([_slices(some, axis).clone() for some in blocks(train)]))
    mean, deviation = known.mean(0), known.std(0).clamp(min=1e-6)

    def standardised(images: Tensor) -> Tensor:
        features = network.to(images.device)(images)
        return (features - sent(mean, images.device)) / sent(deviation, images.device)

    return standardised


def ranking(views: Mapping[str, Features], real: Images) -> dict[str, dict[str, list[float]]]:
    """View -> distortion -> Fréchet distance of real images from themselves distorted, a little, more and much."""
    random = torch.Generator().manual_seed(0)
    features: dict[tuple[str, str, int], list[Tensor]] = {}
    for some in blocks(real, DISTORTED_BYTES) if views else ():
        for name, strength, images in _distorted(some, torch.randn(some.shape, generator=random)):
            for view, extract in views.items():
                features.setdefault((view, name, strength), []).append(extract(images).double())
    true = {view: features_of(extract, real) for view, extract in views.items()}
    ranked: dict[str, dict[str, list[float]]] = {}
    for (view, name, _), parts in features.items():  # strengths come in order
        distances = ranked.setdefault(view, {}).setdefault(name, [])
        distances.append(float(frechet_distance(torch.cat(parts), true[view])))
    return ranked


def _distorted(real: Tensor, noise: Tensor) -> Iterator[tuple[str, int, Tensor]]:
    """Distortion, its strength (0, 1, 2) and the images."""
    pool = functional.avg_pool3d if real.ndim == 5 else functional.avg_pool2d
    blurred = real
    for strength, times in enumerate((1, 1, 2)):  # 1, 2 and 4 times in all
        for _ in range(times):
            blurred = pool(blurred, 3, stride=1, padding=1, count_include_pad=False)
        yield "blur", strength, blurred
    for strength, spread in enumerate((0.1, 0.2, 0.4)):
        yield "noise", strength, (real + spread * noise).clamp(-1, 1)
    axes = list(range(2, real.ndim))
    for strength, voxels in enumerate((1, 2, 4)):
        yield "shift", strength, real.roll([voxels] * len(axes), dims=axes)
