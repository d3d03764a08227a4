"""The server's optimiser equals torch's own, can be stopped and resumed, and refuses foreign state."""

from __future__ import annotations

import pytest
import torch

from federated.server_optimiser import ServerOptimiser
from federated.settings import ServerOptimiserConfig

UPDATES = [torch.randn(20, generator=torch.Generator().manual_seed(i)) for i in range(6)]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_it_equals_torch_optim_on_the_negative_update(name):
    config = ServerOptimiserConfig(name=name, learning_rate=0.03, beta1=0.8, beta2=0.95, tau=1e-3)
    parameter = torch.nn.Parameter(torch.ones(20))
    oracle = {
        "sgd": lambda: torch.optim.SGD([parameter], lr=0.03),
        "momentum": lambda: torch.optim.SGD([parameter], lr=0.03, momentum=0.8),
        "adam": lambda: torch.optim.Adam([parameter], lr=0.03, betas=(0.8, 0.95), eps=1e-3),
    }[name]()
    ours, vector = ServerOptimiser(config, 20), torch.ones(20)
    for update in UPDATES:
        vector = ours.step(vector, update)
        parameter.grad = -update
        oracle.step()
    torch.testing.assert_close(vector, parameter.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_resumed_optimiser_goes_on_bit_for_bit(name):
    config = ServerOptimiserConfig(name=name)
    whole, vector = ServerOptimiser(config, 20), torch.zeros(20)
    for update in UPDATES:
        vector = whole.step(vector, update)
    first, half = ServerOptimiser(config, 20), torch.zeros(20)
    for update in UPDATES[:3]:
        half = first.step(half, update)
    second = ServerOptimiser(config, 20)
    second.load(first.state(), first.steps)
    for update in UPDATES[3:]:
        half = second.step(half, update)
    assert torch.equal(half, vector)


def test_state_of_another_optimiser_or_size_is_refused():
    adam = ServerOptimiser(ServerOptimiserConfig(name="adam"), 20)
    with pytest.raises(ValueError, match="began with"):
        ServerOptimiser(ServerOptimiserConfig(name="sgd"), 20).load(adam.state(), 1)
    with pytest.raises(ValueError, match="20 numbers"):
        ServerOptimiser(ServerOptimiserConfig(name="adam"), 21).load(adam.state(), 1)
