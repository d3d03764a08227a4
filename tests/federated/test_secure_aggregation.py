"""Secure aggregation: sums are exact whoever drops, single vectors stay hidden, and no forged message is believed."""

from __future__ import annotations

import dataclasses
import time
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from federated.secure_aggregation import Device, Identity, Ring, SecureAggregationError, Server, shamir
from federated.secure_aggregation.masks import agree, expand, statement
from federated.secure_aggregation.shamir import PRIME, join, split

D = 40
RNG = np.random.default_rng(3)
IDENTITIES = {number: Identity() for number in range(8)}
DIRECTORY = {number: identity.public for number, identity in IDENTITIES.items()}


class Session:
    """All devices and the server of one sum; ``gone[stage]``: devices that fall silent before that stage."""

    def __init__(self, n=5, threshold=4, dimension=D, session=b"s" * 32, clip_norm=1.0):
        self.directory = {number: DIRECTORY[number] for number in range(n)}
        self.ring = Ring(clip_norm, n, dimension)
        self.server = Server(self.directory, session, self.ring, threshold)
        self.devices = {
            number: Device(number, IDENTITIES[number], self.directory, session, self.ring, threshold)
            for number in range(n)
        }
        self.vectors = {number: RNG.normal(size=dimension) / 10 for number in range(n)}

    def up_to_masked(self, gone=None):
        gone = gone or {}
        present = set(self.devices) - gone.get("advertise", set())
        self.adverts = self.server.keys({n: self.devices[n].advertise() for n in present})
        present -= gone.get("share", set())
        self.posts = self.server.posts({n: self.devices[n].share(self.adverts) for n in present})
        present -= gone.get("masked", set())
        self.masked = {n: self.devices[n].masked(self.vectors[n], self.posts[n]) for n in present}
        return present

    def run(self, gone=None):
        gone = gone or {}
        present = self.up_to_masked(gone)
        self.survivors = self.server.survivors(self.masked)
        present -= gone.get("confirm", set())
        signatures = self.server.signatures({n: self.devices[n].confirm(self.survivors) for n in present})
        present -= gone.get("unmask", set())
        return self.server.total({n: self.devices[n].unmask(signatures) for n in present})

    def expected(self, members):
        total = np.zeros(self.ring.dimension, dtype=np.uint32)
        for number in members:
            total += self.ring.encode(self.vectors[number])
        return self.ring.decode(total)


# The sum


STAGES = ["advertise", "share", "masked", "confirm", "unmask"]


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_the_sum_is_exact_in_the_ring_whenever_a_device_drops(stage):
    session = Session()
    total = session.run({stage: {2}} if stage else {})
    members = {0, 1, 3, 4} if stage in ("advertise", "share", "masked") else {0, 1, 2, 3, 4}
    assert np.array_equal(total, session.expected(members))
    plain = sum(session.vectors[number] for number in members)
    assert np.abs(total - plain).max() <= len(members) / session.ring.scale


def test_devices_may_drop_at_every_stage_of_one_session():
    session = Session(n=8, threshold=5)
    total = session.run({"advertise": {0}, "masked": {7}, "confirm": {3}})
    assert np.array_equal(total, session.expected({1, 2, 3, 4, 5, 6}))


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_there_is_no_sum(stage):
    with pytest.raises(SecureAggregationError, match="are needed"):
        Session().run({stage: {1, 3}})


def test_ten_devices_with_100k_numbers_take_less_than_half_a_second_of_cpu():
    directory = {number: Identity() for number in range(10)}
    public = {number: identity.public for number, identity in directory.items()}
    ring, session = Ring(1.0, 10, 100_000), b"t" * 32
    vectors = RNG.normal(size=(10, 100_000)) / 1000
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        server = Server(public, session, ring, 7)
        devices = {n: Device(n, directory[n], public, session, ring, 7) for n in range(10)}
        adverts = server.keys({n: device.advertise() for n, device in devices.items()})
        posts = server.posts({n: device.share(adverts) for n, device in devices.items()})
        survivors = server.survivors({n: devices[n].masked(vectors[n], posts[n]) for n in range(9)})
        signatures = server.signatures({n: devices[n].confirm(survivors) for n in survivors})
        total = server.total({n: devices[n].unmask(signatures) for n in survivors})
        best = min(best, time.process_time() - start)
    np.testing.assert_allclose(total, vectors[:9].sum(axis=0), atol=9 / ring.scale)
    assert best < 0.5, f"{best:.2f} s"


# What stays hidden


def uniform(words):
    """p-value of a chi-squared test that the bytes of ``words`` are uniform."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue


def test_a_masked_vector_looks_like_noise_and_differs_each_time():
    zero = {number: np.zeros(20_000) for number in range(5)}
    seen = []
    for attempt in range(2):
        session = Session(dimension=20_000, session=bytes([attempt]) * 32)
        session.vectors = zero
        session.up_to_masked()
        seen.append(session.masked[1])
        assert all(uniform(words) > 1e-4 for words in session.masked.values())
    assert (seen[0] == seen[1]).mean() < 1e-3


def test_the_server_with_all_but_two_devices_sees_only_the_sum_of_the_two():
    session = Session(dimension=20_000)
    session.vectors = {number: np.zeros(20_000) for number in range(5)}
    session.up_to_masked()
    # Devices 2, 3 and 4 tell the server everything: every mask that they share with device 0 comes off.
    words = session.masked[0].copy()
    for helper in (2, 3, 4):
        key = agree(session.devices[helper]._masking, session.adverts[0].masking, "mask", b"s" * 32, helper, 0)
        words = words - expand(key, 20_000)
    assert uniform(words) > 1e-4  # what is left is still covered by the own mask and by the one shared with device 1


def test_the_server_with_any_colluders_below_the_threshold_learns_the_others_sum_and_nothing_else():
    """After a whole session: the server has taken off all own masks, and the colluders all masks that they share."""
    session = Session(n=5, threshold=4, dimension=20_000)
    session.vectors = {number: np.full(20_000, 0.001 * (number + 1)) for number in range(5)}
    session.run()
    bare = {n: session.masked[n] - expand(session.devices[n]._own_mask, 20_000) for n in range(5)}
    for size in range(4):
        for colluders in combinations(range(5), size):
            honest = [number for number in range(5) if number not in colluders]
            left = {}
            for number in honest:
                words = bare[number].copy()
                for helper in colluders:
                    device = session.devices[helper]
                    key = agree(device._masking, session.adverts[number].masking, "mask", b"s" * 32, helper, number)
                    mask = expand(key, 20_000)
                    words = words - mask if number < helper else words + mask
                left[number] = words
            assert all(uniform(words) > 1e-5 for words in left.values()), (colluders, "a vector shows")
            total = sum(left.values(), np.zeros(20_000, np.uint32))
            assert np.array_equal(session.ring.decode(total), session.expected(honest))


def test_fewer_shares_than_the_threshold_fit_every_secret():
    shares = split(b"\x07" * 32, [1, 2, 3, 4, 5], 3)
    known = {1: int.from_bytes(shares[1], "big"), 2: int.from_bytes(shares[2], "big")}
    for other in (b"\x00" * 32, b"\xff" * 32):
        # The third share that would make the two known ones reveal the other secret exists, whatever the secret.
        points = {0: int.from_bytes(other, "big"), **known}
        forged = dict(shares)
        forged[3] = shamir._interpolate(sorted(points), points, 3).to_bytes(66, "big")
        assert join({point: forged[point] for point in (1, 2, 3)}, 3) == other
    with pytest.raises(SecureAggregationError, match="stays unknown"):
        join({1: shares[1], 2: shares[2]}, 3)


def test_no_device_gives_both_secrets_of_another():
    session = Session(n=8, threshold=5)
    present = session.up_to_masked({"masked": {6, 7}})
    survivors = session.server.survivors(session.masked)
    signatures = session.server.signatures({n: session.devices[n].confirm(survivors) for n in present})
    for number in present:
        given = session.devices[number].unmask(signatures)
        assert not set(given.own_masks) & set(given.masking_keys)
        assert set(given.masking_keys) == {6, 7}
        with pytest.raises(SecureAggregationError, match="once, in order"):
            session.devices[number].unmask(signatures)


def test_a_server_that_names_different_survivors_gets_no_share():
    session = Session(n=8, threshold=6)
    session.up_to_masked()
    everybody, without = frozenset(range(8)), frozenset(range(8)) - {5}
    told = {number: everybody if number < 4 else without for number in range(8) if number != 5}
    signatures = {number: session.devices[number].confirm(list_) for number, list_ in told.items()}
    for number in told:
        with pytest.raises(SecureAggregationError, match="signed the same list"):
            session.devices[number].unmask(signatures)


# What is not believed


def test_keys_that_another_signed_are_refused_by_device_and_server():
    session = Session(threshold=4)
    adverts = {n: device.advertise() for n, device in session.devices.items()}
    stranger = Identity()
    signed = statement("keys", b"s" * 32, 2, adverts[2].encryption, adverts[3].masking)
    forged = dataclasses.replace(adverts[2], masking=adverts[3].masking, signature=stranger.sign(signed))
    with pytest.raises(SecureAggregationError, match="not signed"):
        session.devices[0].share({**adverts, 2: forged})
    assert 2 not in session.server.keys({**adverts, 2: forged}) and 2 in session.server.dropped


def test_keys_of_another_session_are_refused():
    old, new = Session(session=b"o" * 32), Session(session=b"n" * 32)
    adverts = {n: device.advertise() for n, device in new.devices.items()}
    adverts[1] = old.devices[1].advertise()
    with pytest.raises(SecureAggregationError, match="for this session"):
        new.devices[0].share(adverts)


def test_one_devices_keys_under_anothers_number_are_refused():
    session = Session()
    adverts = {n: device.advertise() for n, device in session.devices.items()}
    with pytest.raises(SecureAggregationError, match="not signed"):
        session.devices[0].share({**adverts, 2: adverts[3]})


@pytest.mark.parametrize("how", ["altered", "swapped", "reflected"])
def test_post_that_was_tampered_with_is_refused(how):
    session = Session()
    adverts = session.server.keys({n: device.advertise() for n, device in session.devices.items()})
    sent = {n: device.share(adverts) for n, device in session.devices.items()}
    posts = session.server.posts(sent)
    if how == "altered":
        posts[0][1] = posts[0][1][:-1] + bytes([posts[0][1][-1] ^ 1])
    elif how == "swapped":
        posts[0][1], posts[0][2] = posts[0][2], posts[0][1]
    else:
        posts[0][1] = sent[0][1]  # device 0's own post to device 1, sent back to it
    masked = {n: session.devices[n].masked(session.vectors[n], posts[n]) for n in posts}
    survivors = session.server.survivors(masked)
    signatures = session.server.signatures({n: session.devices[n].confirm(survivors) for n in survivors})
    with pytest.raises(SecureAggregationError, match="altered, swapped or replayed"):
        session.devices[0].unmask(signatures)


def test_a_forged_share_is_noticed_and_spoils_no_sum_silently():
    session = Session(n=6, threshold=4)
    present = session.up_to_masked({"masked": {5}})
    survivors = session.server.survivors(session.masked)
    signatures = session.server.signatures({n: session.devices[n].confirm(survivors) for n in present})
    given = {n: session.devices[n].unmask(signatures) for n in present}
    given[2].own_masks[0] = (int.from_bytes(given[2].own_masks[0], "big") ^ 1).to_bytes(66, "big")
    with pytest.raises(SecureAggregationError, match="forged"):
        session.server.total(given)


def test_a_vector_of_another_shape_drops_its_device_and_the_others_are_summed():
    session = Session()
    session.up_to_masked()
    session.masked[3] = session.masked[3][:-1]
    survivors = session.server.survivors(session.masked)
    assert survivors == {0, 1, 2, 4} and "shape" in session.server.dropped[3]
    signatures = session.server.signatures({n: session.devices[n].confirm(survivors) for n in survivors})
    total = session.server.total({n: session.devices[n].unmask(signatures) for n in survivors})
    assert np.array_equal(total, session.expected(survivors))


def test_a_device_that_refused_takes_part_in_nothing_more():
    device = Session().devices[0]
    device.advertise()
    with pytest.raises(SecureAggregationError):
        device.share({})
    with pytest.raises(SecureAggregationError, match="'refused'"):
        device.share({})


def test_thresholds_and_sessions_that_protect_nobody_are_refused():
    with pytest.raises(ValueError, match="more than half"):
        Session(n=4, threshold=2)
    with pytest.raises(ValueError, match="32 random"):
        Session(session=b"short")
    with pytest.raises(ValueError, match="another identity"):
        Device(0, Identity(), DIRECTORY, b"s" * 32, Ring(1.0, 8, D), 6)


# The ring


@pytest.mark.parametrize("length", [0.5, 1.0, 100.0])
def test_what_is_in_the_ring_is_never_longer_than_the_norm(length):
    ring = Ring(1.0, 1000, 20_000)
    vector = RNG.normal(size=20_000)
    vector *= length / np.linalg.norm(vector)
    decoded = ring.decode(ring.encode(vector))
    assert np.linalg.norm(decoded) <= 1.0
    assert np.linalg.norm(decoded - vector / max(1.0, length)) < 2 * ring.rounding + 1e-9


def test_the_largest_possible_sum_does_not_wrap():
    ring = Ring(2.0, 7, 1)
    total = sum((ring.encode(np.array([5.0])) for _ in range(7)), np.zeros(1, np.uint32))
    np.testing.assert_allclose(ring.decode(total), [14.0], rtol=1e-6)


def test_what_does_not_fit_the_ring_is_refused():
    with pytest.raises(ValueError, match="rounding"):
        Ring(1.0, 10_000_000, 1_000_000)
    ring = Ring(1.0, 5, 3)
    with pytest.raises(ValueError, match="not finite"):
        ring.encode(np.array([1.0, np.nan, 0.0]))
    with pytest.raises(ValueError, match="shape"):
        ring.encode(np.zeros(4))


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_any_shares_up_to_the_threshold_give_the_secret(threshold):
    secret = bytes(range(32))
    shares = split(secret, [3, 1, 8, 20, 100], threshold)
    assert join(dict(list(shares.items())[-threshold:]), threshold) == secret
    assert all(int.from_bytes(share, "big") < PRIME for share in shares.values())
