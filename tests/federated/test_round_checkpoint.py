"""Round checkpoints: what is saved comes back bit for bit; what is damaged, foreign or half-written never does."""

from __future__ import annotations

import os

import pytest
import torch

from federated.checkpoint import CheckpointError, Checkpoints, RoundState, write_atomically


def state(rounds=3, fingerprint="f"):
    generator = torch.Generator().manual_seed(rounds)
    return RoundState(
        rounds_done=rounds,
        vector=torch.randn(50, generator=generator),
        optimiser={"first_moment": torch.randn(50, generator=generator)},
        optimiser_steps=rounds - 1,
        fingerprint=fingerprint,
        lost=(1,),
        history=({"round": 1, "epsilon": 0.5, "update_norm": 1.25},),
    )


def test_a_saved_state_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, "f")
    assert checkpoints.latest() is None
    saved = state()
    checkpoints.save(saved)
    loaded = Checkpoints(tmp_path, "f").latest()
    assert loaded is not None
    assert torch.equal(loaded.vector, saved.vector)
    assert torch.equal(loaded.optimiser["first_moment"], saved.optimiser["first_moment"])
    assert (loaded.rounds_done, loaded.optimiser_steps, loaded.lost, loaded.history) == (3, 2, (1,), saved.history)


def test_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, "f")
    for number in (1, 2, 3, 11):
        checkpoints.save(state(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000003.safetensors", "round-000011.safetensors"]
    assert checkpoints.latest().rounds_done == 11


@pytest.mark.parametrize("where", [8, 200, -1], ids=["header", "metadata", "numbers"])
def test_a_flipped_bit_is_found(tmp_path, where):
    path = Checkpoints(tmp_path, "f").save(state())
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="move it away"):
        Checkpoints(tmp_path, "f").latest()


@pytest.mark.parametrize("keep", [0, 7, 100, -4])
def test_a_truncated_file_is_found_and_the_older_one_is_named(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, "f")
    checkpoints.save(state(1))
    path = checkpoints.save(state(2))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"goes on from round-000001\.safetensors"):
        checkpoints.latest()
    path.unlink()
    assert checkpoints.latest().rounds_done == 1


def test_another_configuration_is_refused(tmp_path):
    Checkpoints(tmp_path, "f").save(state())
    with pytest.raises(CheckpointError, match="another configuration"):
        Checkpoints(tmp_path, "g").latest()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def crash(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x"]
