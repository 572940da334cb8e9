"""The small networks of `utility`: images with what is to be predicted of them, and how all networks are trained.

Every network of a task starts from the same weights for the same seed and takes equally many updates of equally many
images, whatever it is trained on. No validation person is looked at, and no number is chosen by what a network reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_medgen.batch import Images, sent
from lit_medgen.errors import NonFiniteError
from lit_medgen.evaluation.held import Scratch
from lit_medgen.evaluation.utility_tasks import Task
from lit_medgen.metrics.base import images_of_people
from lit_medgen.seeds import mix

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2
"""Of AdamW; the rate falls to 0 along a cosine."""
AT_ONCE = 64
"""Images that are tested together."""


@dataclass(frozen=True)
class Labelled:
    """Images as a network sees them, with what it should predict.

    Attributes:
        images: n c *t.
        targets: indices -> n of attributes, n 1 *s of label maps.
    """

    images: Images
    targets: Callable[[Sequence[int]], Tensor]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_people(self) -> int:
        """How many people they are of, or were made like; an image that is nobody's counts for one."""
        return len(images_of_people(self.images.people))

    def all_targets(self) -> Tensor:
        """The targets of all images."""
        return self.targets(range(len(self)))

    def exchanged(self, seed: int) -> Labelled:
        """The same images, each with the target of another, so that targets say nothing of images.

        Attributes are sorted and taken in steps of about 0.618 of their number, which leaves hardly any correlation of
        old and new targets; of two values, that of a random order alone can teach a network the true ones, or their
        opposite. Label maps are exchanged at random.
        """
        num, random = len(self), _random("labels", seed)
        order = torch.randperm(num, generator=random)
        if self.targets([0]).ndim == 1:
            order = order[self.all_targets()[order].argsort(stable=True)]
        step = next(k for k in range(max(1, round(0.618 * num)), num + 2) if math.gcd(k, num) == 1)
        other = torch.empty_like(order)
        other[order] = order[(torch.arange(num) * step + int(torch.randint(num, (), generator=random))) % num]
        return Labelled(self.images, lambda indices: self.targets(other[list(indices)].tolist()))

    def in_order(self, seed: int) -> list[Tensor]:
        """The indices of the images of each person, people in an order by chance."""
        groups = list(images_of_people(self.images.people).values())
        return [groups[i] for i in torch.randperm(len(groups), generator=_random("people", seed)).tolist()]


Chosen = Sequence[tuple[Labelled, int]]
"""Images to train on, of one or several sets."""


@dataclass(frozen=True)
class Training:
    """How networks are trained.

    Attributes:
        num_steps: updates.
        batch_size: images of each.
        device: where.
    """

    num_steps: int
    batch_size: int
    device: torch.device

    def __call__(self, task: Task, chosen: Chosen, seed: int) -> nn.Module:
        """A network that was trained on some images, in evaluation mode; NonFiniteError if its loss is none."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix("utility", "weights", seed))
            network = task.network().to(self.device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        for indices in _batches(len(chosen), self.batch_size, self.num_steps, seed):
            images, targets = _read([chosen[i] for i in indices])
            loss = task.loss(network(sent(images, self.device)), sent(targets, self.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if not loss.isfinite():
            raise NonFiniteError(f"utility: the {task.kind} of {task.name} has a loss of {loss:g}; look at the images.")
        return network.eval()

    @torch.no_grad()
    def outcomes(self, task: Task, network: nn.Module, tested: Labelled) -> Tensor:
        """What the scores of a network are made of, n d; see `Task.outcomes`."""
        found = []
        for start in range(0, len(tested), AT_ONCE):
            indices = range(start, min(start + AT_ONCE, len(tested)))
            given = network(sent(tested.images.read(indices), self.device))
            found.append(task.outcomes(given, sent(tested.targets(indices), self.device)))
        return torch.cat(found)


def _read(chosen: Chosen) -> tuple[Tensor, Tensor]:
    """Images n c *t and their targets, those of a set together."""
    of_sets: dict[int, tuple[Labelled, list[int]]] = {}
    for part, index in chosen:
        of_sets.setdefault(id(part), (part, []))[1].append(index)
    images = [part.images.read(indices) for part, indices in of_sets.values()]
    return torch.cat(images), torch.cat([part.targets(indices) for part, indices in of_sets.values()])


def _batches(num: int, batch_size: int, num_steps: int, seed: int) -> Iterator[list[int]]:
    """Indices of the images of every update: all of them by chance, then all again in another order."""
    random, waiting = _random("batches", seed), list[int]()
    for _ in range(num_steps):
        while len(waiting) < batch_size:
            waiting += torch.randperm(num, generator=random).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _random(what: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix("utility", what, seed))


def labelled(task: Task, images: Images, target: Callable[[int], Tensor | None], scratch: Scratch) -> Labelled:
    """The images whose target is known, held as the network sees them; nobody's if there are none.

    Args:
        task: what is to be predicted.
        images: n c *s in [-1, 1], whose people are those of the result.
        target: index of an image -> 1 of an attribute, 1 1 *s of a label map; None where it is not known.
        scratch: holds them.
    """
    known = [i for i in range(len(images)) if target(i) is not None]
    if not known:
        return Labelled(Images.of(torch.empty(0)), lambda _: torch.empty(0))
    people = [images.people[i] for i in known]
    seen = scratch.hold((task.seen(images.read([i])) for i in known), len(known), people)
    targets = scratch.hold((found for i in known if (found := target(i)) is not None), len(known))
    return Labelled(seen, targets.read)
