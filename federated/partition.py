"""Partitions: who holds which samples. Deterministic, and no sample is lost or shared.

    by_owner      as they came: one device per owner (households, photographers)
    dirichlet     each class is spread over the devices by a Dirichlet draw; a small concentration makes devices differ
                  (Hsu, Qi & Brown, 2019, "Measuring the Effects of Non-Identical Data Distribution")
    by_quantity   the same mixture, but sizes are log-normal: a few devices hold much, many hold little
    by_class      each device holds samples of a few classes only (McMahan et al., 2017)

A partition is a list of index lists, one per device, each sorted. What they refuse: fewer samples than devices need,
and numbers that make no partition; the message says how many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mmslm.data.photo import Photo

Partition = list[list[int]]


def by_owner(owners: Sequence[str]) -> Partition:
    """One device per owner, owners in sorted order."""
    held: dict[str, list[int]] = {}
    for index, owner in enumerate(owners):
        held.setdefault(owner, []).append(index)
    return [held[owner] for owner in sorted(held)]


def dirichlet(
    labels: Sequence[Hashable], devices: int, *, concentration: float, seed: int = 0, fewest: int = 1
) -> Partition:
    """Each class spread by a Dirichlet(concentration) draw over ``devices``; every device gets at least ``fewest``.

    concentration > 0: 100 is nearly even, 0.1 leaves most devices with one or two classes.
    """
    _check(len(labels), devices, fewest)
    if not concentration > 0:
        raise ValueError(f"the concentration is {concentration}; give a number above 0 (0.1 uneven, 100 nearly even).")
    dice = np.random.default_rng([seed, 1])
    parts: Partition = [[] for _ in range(devices)]
    for members in _classes(labels):
        shares = dice.dirichlet(np.full(devices, concentration))
        if not np.isfinite(
            shares
        ).all():  # all draws underflowed: the class goes to one device, as it would in the limit
            shares = np.eye(devices)[dice.integers(devices)]
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, chunk in zip(parts, np.split(dice.permutation(members), cuts), strict=True):
            part.extend(int(index) for index in chunk)
    return _finish(parts, fewest, dice)


def by_quantity(samples: int, devices: int, *, spread: float, seed: int = 0, fewest: int = 1) -> Partition:
    """Samples dealt at random, sizes log-normal with standard deviation ``spread`` >= 0 (0 is even) of the logarithm."""
    _check(samples, devices, fewest)
    if not spread >= 0:
        raise ValueError(
            f"the spread is {spread}; give a number of at least 0 (0 makes devices equal, 1 very unequal)."
        )
    dice = np.random.default_rng([seed, 2])
    sizes = np.exp(dice.normal(0.0, spread, devices))
    cuts = np.rint(np.cumsum(sizes / sizes.sum())[:-1] * samples).astype(int)
    chunks = np.split(dice.permutation(samples), cuts)
    return _finish([[int(index) for index in chunk] for chunk in chunks], fewest, dice)


def by_class(labels: Sequence[Hashable], devices: int, *, classes_each: int, seed: int = 0) -> Partition:
    """Each device holds samples of at most ``classes_each`` classes; every class is held by somebody."""
    classes = _classes(labels)
    if not 1 <= classes_each <= len(classes) or devices * classes_each < len(classes):
        raise ValueError(
            f"{devices} devices with {classes_each} classes each cannot hold {len(classes)} classes; give 1 to {len(classes)} "
            "classes each, and enough devices to hold them all."
        )
    dice = np.random.default_rng([seed, 3])
    # Classes are dealt round and round in one random order, so each is held about equally often and never by nobody.
    order = dice.permutation(len(classes))
    holders: list[list[int]] = [[] for _ in classes]
    for slot in range(devices * classes_each):
        holders[order[slot % len(classes)]].append(slot // classes_each)
    parts: Partition = [[] for _ in range(devices)]
    for members, holding in zip(classes, holders, strict=True):
        if len(members) < len(set(holding)):
            raise ValueError(
                f"a class has {len(members)} samples and {len(set(holding))} devices are to share it; use fewer devices."
            )
        for device, chunk in zip(holding, np.array_split(dice.permutation(members), len(holding)), strict=True):
            parts[device].extend(int(index) for index in chunk)
    return _finish(parts, 1, dice)


class PartitionedPhotos:
    """A population (``federated.devices.Population``) of any photos under a partition."""

    def __init__(self, photos: Sequence[Photo], partition: Partition) -> None:
        check_partition(partition, len(photos))
        self._photos, self._partition = photos, partition
        self.size = len(partition)

    def photos(self, device: int) -> list[Photo]:
        """The photos of ``device`` in [0, size)."""
        if not 0 <= device < self.size:
            raise ValueError(f"there is no device {device}; this population has devices 0 to {self.size - 1}.")
        return [self._photos[index] for index in self._partition[device]]


def check_partition(partition: Partition, samples: int) -> None:
    """ValueError unless each of ``samples`` samples is held by exactly one device, and each device holds one."""
    held = sorted(index for part in partition for index in part)
    if held != list(range(samples)):
        raise ValueError(
            f"the partition holds {len(held)} places for {samples} samples: some are lost, shared or unknown."
        )
    empty = [device for device, part in enumerate(partition) if not part]
    if empty:
        raise ValueError(f"{len(empty)} devices hold nothing (the first is {empty[0]}); give each at least one sample.")


def picture(partition: Partition, labels: Sequence[Hashable], *, most_devices: int = 100) -> Image.Image:
    """Who holds what: one bar per device (the first ``most_devices``), its height the samples, its colours the classes."""
    names = sorted(set(labels), key=str)
    colours = {name: _colour(place, len(names)) for place, name in enumerate(names)}
    shown = partition[:most_devices]
    width, height, margin = 960, 320, 24
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    tallest = max(len(part) for part in shown)
    step = (width - 2 * margin) / len(shown)
    base = height - 2 * margin  # below it the names of the classes
    for device, part in enumerate(shown):
        counts = Counter(labels[index] for index in part)
        bottom = float(base)
        left = margin + device * step
        for name in names:
            top = bottom - counts[name] / tallest * (base - margin)
            if counts[name]:
                draw.rectangle((left, top, left + max(1.0, step * 0.85), bottom), fill=colours[name])
            bottom = top
    more = f" (the first {len(shown)} shown)" if len(shown) < len(partition) else ""
    caption = (
        f"{len(partition)} devices{more}, {sum(map(len, partition))} samples, {len(names)} classes; "
        f"tallest bar: {tallest}"
    )
    draw.text((margin, 6), caption, fill="black")
    often = Counter(labels).most_common()
    _legend(draw, [(str(name), colours[name]) for name, _ in often], margin, base + 8, width - margin)
    return image


def _legend(
    draw: ImageDraw.ImageDraw, entries: list[tuple[str, tuple[int, int, int]]], left: int, top: int, right: int
) -> None:
    """Class names with their colours, in at most two lines; "..." where there are more."""
    x, y, line = float(left), float(top), 1
    for name, colour in entries:
        text = name if len(name) <= 24 else name[:23] + "…"
        wide = 14 + draw.textlength(text) + 14
        if x + wide > right - 20:
            line, x, y = line + 1, float(left), y + 16
            if line > 2:
                draw.text((right - 16, top + 16), "...", fill="black")
                return
        draw.rectangle((x, y + 1, x + 9, y + 10), fill=colour)
        draw.text((x + 13, y), text, fill="black")
        x += wide


def _colour(place: int, count: int) -> tuple[int, int, int]:
    """Evenly spaced hues of two lightnesses, so that neighbours differ also for those who see hues alike."""
    hue = place / max(1, count) * 5.4  # the last hue must not come back to the first
    light = 0.85 if place % 2 else 0.55
    channels = [min(1.0, max(0.0, abs((hue - shift) % 6 - 3) - 1)) for shift in (0, 2, 4)]
    red, green, blue = (round(255 * light * (0.35 + 0.65 * channel)) for channel in channels)
    return red, green, blue


def _classes(labels: Sequence[Hashable]) -> list[list[int]]:
    held: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        held.setdefault(label, []).append(index)
    return [held[label] for label in sorted(held, key=str)]


def _check(samples: int, devices: int, fewest: int) -> None:
    if devices < 1 or fewest < 1 or samples < devices * fewest:
        raise ValueError(
            f"{samples} samples cannot give {devices} devices at least {fewest} each; use fewer devices, or more samples."
        )


def _finish(parts: Partition, fewest: int, dice: np.random.Generator) -> Partition:
    """Top up devices that got too little from those that hold most, and sort."""
    for part in parts:
        while len(part) < fewest:
            richest = max(parts, key=len)
            part.append(richest.pop(int(dice.integers(len(richest)))))
    return [sorted(part) for part in parts]
