"""Orders: the ways in which domains and classes can follow one another in a stream.

Every order is a pure function from domains (and, where it needs them, labels) and a generator to a `Stream`; all of its
randomness comes from that generator. Batches never skip or repeat an image unless the order says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...suite.bundle import Array
from ...suite.protocols.stream import Stream, even_cuts


@dataclass(frozen=True)
class Domain:
    """A named set of images: `indices` (n,) into the public arrays."""

    name: str
    indices: Array


def continual(domains: Sequence[Domain], rng: np.random.Generator, batch_size: int) -> Stream:
    """One domain after the other, each shuffled; a batch may hold the end of one and the start of the next."""
    return _joined(domains, [rng.permutation(domain.indices) for domain in domains], batch_size)


def mixed(domains: Sequence[Domain], rng: np.random.Generator, batch_size: int) -> Stream:
    """All images of all domains in one shuffle."""
    indices = np.concatenate([domain.indices for domain in domains])
    members = np.repeat(np.arange(len(domains)), [len(domain.indices) for domain in domains])
    order = rng.permutation(len(indices))
    return _stream(indices[order], members[order], domains, batch_size)


def class_sorted(domains: Sequence[Domain], labels: Array, rng: np.random.Generator, batch_size: int) -> Stream:
    """One domain after the other, and within each one class after the other; `labels` by public index."""
    parts = []
    for domain in domains:
        shuffled = rng.permutation(domain.indices)
        parts.append(shuffled[np.argsort(labels[shuffled], kind="stable")])
    return _joined(domains, parts, batch_size)


def correlated(
    domains: Sequence[Domain], labels: Array, gamma: float, rng: np.random.Generator, batch_size: int
) -> Stream:
    """One domain after the other, with classes that come in bursts (Yuan et al. 2023, arXiv:2303.13899).

    Each domain has as many slots as classes. Every class deals its images to the slots by shares drawn from a symmetric
    Dirichlet distribution with concentration `gamma`; slots follow one another, shuffled inside. A small gamma gives
    slots of nearly one class, a large one approaches the plain shuffle. Raises `ValueError` for gamma <= 0.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    parts = []
    for domain in domains:
        classes = np.unique(labels[domain.indices])
        slots: list[list[Array]] = [[] for _ in classes]
        for label in classes:
            members = rng.permutation(domain.indices[labels[domain.indices] == label])
            shares = rng.dirichlet(np.full(len(classes), gamma))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for slot, piece in zip(slots, np.split(members, cuts), strict=True):
                slot.append(piece)
        parts.append(np.concatenate([rng.permutation(np.concatenate(slot)) for slot in slots]))
    return _joined(domains, parts, batch_size)


def imbalanced(
    domains: Sequence[Domain], labels: Array, ratio: float, rng: np.random.Generator, batch_size: int, draws: int = 2
) -> Stream:
    """One domain after the other, from each `draws` times as many images as it has, of one class after the other.

    The online imbalanced label shift of SAR (Niu et al. 2023, arXiv:2302.12400, section 4): the classes have equally
    long turns, in a random order; in a turn its class is `ratio` times as likely as each other one, and an image is
    drawn from all images of its class, so that some come again and others never. Each domain has draws of its own,
    its own batches, and the method is put back to its start before each, as `separate` does it. The authors' release
    draws 100,000 of 50,000 images with the ratio 500,000, once for all domains.

    Raises `ValueError` for a ratio below 1.
    """
    if ratio < 1:
        raise ValueError(f"ratio must be 1 or more, got {ratio}")
    parts = []
    for domain in domains:
        by_class = domain.indices[np.argsort(labels[domain.indices], kind="stable")]
        _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
        k, n = len(counts), draws * len(by_class)
        turn = rng.permutation(k)[np.arange(n) * k // n]
        # Uniform over all classes with this share, else the turn's own.
        other = rng.random(n) < k / (ratio + k - 1)
        drawn = np.where(other, rng.integers(0, k, n), turn)
        parts.append(by_class[starts[drawn] + rng.integers(0, counts[drawn])])
    return _apart(_joined(domains, parts, batch_size), [len(part) for part in parts], batch_size)


def recurring(domains: Sequence[Domain], rng: np.random.Generator, batch_size: int, rounds: int = 10) -> Stream:
    """The continual order `rounds` times, shuffled anew each time."""
    parts = [rng.permutation(domain.indices) for _ in range(rounds) for domain in domains]
    return _joined(list(domains) * rounds, parts, batch_size)


def separate(domains: Sequence[Domain], rng: np.random.Generator, batch_size: int) -> Stream:
    """One domain after the other, each in batches of its own, and the method put back to its start before each.

    The last batch of a domain may be shorter.
    """
    return _apart(continual(domains, rng, batch_size), [len(domain.indices) for domain in domains], batch_size)


def then(stream: Stream, indices: Array) -> Stream:
    """The same stream, after which the method's predictor is shown the images `indices`, such as clean ones."""
    return dataclasses.replace(stream, after=np.asarray(indices, np.int64))


def gradual(ladders: Sequence[Sequence[Domain]], rng: np.random.Generator, batch_size: int) -> Stream:
    """Every ladder of severities up and down again: 1, 2, ..., S, ..., 2, 1; the images of each step shuffled.

    `ladders[c][s]` is corruption c at severity s + 1. A ladder of S severities has 2 S - 1 steps, so all severities but
    the highest come twice.
    """
    steps = [step for ladder in ladders for step in (*ladder, *reversed(ladder[:-1]))]
    return _joined(steps, [rng.permutation(step.indices) for step in steps], batch_size)


def _apart(stream: Stream, sizes: Sequence[int], batch_size: int) -> Stream:
    """The same images, cut so that no batch crosses from one part into the next, with a reset before each part."""
    edges = np.cumsum(sizes)
    starts = edges - sizes
    cuts = np.concatenate(
        [[0], *(start + even_cuts(end - start, batch_size)[1:] for start, end in zip(starts, edges, strict=True))]
    )
    return dataclasses.replace(stream, cuts=cuts, resets=np.searchsorted(cuts, edges[:-1]))


def _joined(domains: Sequence[Domain], parts: Sequence[Array], batch_size: int) -> Stream:
    members = np.repeat(np.arange(len(domains)), [len(part) for part in parts])
    return _stream(np.concatenate(parts), members, domains, batch_size)


def _stream(indices: Array, members: Array, domains: Sequence[Domain], batch_size: int) -> Stream:
    """A stream over the distinct domain names: a domain that returns is the same domain."""
    names = list(dict.fromkeys(domain.name for domain in domains))
    number = np.array([names.index(domain.name) for domain in domains])
    return Stream(
        indices.astype(np.int64), even_cuts(len(indices), batch_size), number[members].astype(np.int64), tuple(names)
    )
