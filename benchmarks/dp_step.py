"""What privacy costs: one training step with per-sample clipping, against the same step without.

    python benchmarks/dp_step.py [--rounds 3] [--device cpu|cuda] [--models decoder nano] [--engines ...] [--skip-memory]

Engines are interleaved (one step of each, round after round, in a changing order), so that a busy machine slows all of
them alike; each round gives a ratio to the non-private step of the same round, and the table shows the median and the
range of these ratios. CPU time is that of one thread; on CUDA it is wall time after synchronising. Peak memory is that
of a fresh process, from before the model is built to after a first step.

Every step is whole: forward, backward, clipping, noise, AdamW. Models: `decoder` (8 layers, width 256, vocabulary 8192,
96 tokens, batch 32, tied, 10.5 million parameters) and `nano` (mmslm's nano tier with pictures, if it can be built).
Opacus' ghost clipping refuses tied tables, so it runs on an untied copy, against that copy's non-private step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privacy.clipping.engine import OneBackward
from privacy.clipping.kinds import FlatClip
from privacy.noise import SecureNoise
from privacy.optimizer import PrivateOptimizer, micro_batches
from privacy.sampling import FullSampler

Step = Callable[[], None]
LOSSES = Callable[[nn.Module, dict[str, Tensor]], Tensor]


class Block(nn.Module):
    """A Llama-like block without rotary positions."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """ids [B, T] -> logits [B, T, V]."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(8192, 256)
        self.blocks = nn.Sequential(*(Block(256, 1024) for _ in range(8)))
        self.norm, self.head = nn.RMSNorm(256), nn.Linear(256, 8192, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Next-token logits."""
        return self.head(self.norm(self.blocks(self.tokens(ids))))


def decoder(device: str, tied: bool = True) -> tuple[nn.Module, dict[str, Tensor], LOSSES]:
    """The notes' decoder, a batch and its per-sample losses."""
    torch.manual_seed(0)
    batch = {"ids": torch.randint(0, 8192, (32, 96), device=device)}

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits, ids = model(batch["ids"]), batch["ids"]
        each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return each.view(len(ids), -1).mean(dim=1)

    return Decoder(tied).to(device), batch, losses


def nano(device: str, tied: bool = True) -> tuple[nn.Module, dict[str, Tensor], LOSSES]:
    """mmslm's nano tier: 32 pictures of 96 pixels with 60 tokens of text. Raises ImportError where mmslm is absent."""
    from mmslm.model.configuration import MMSLMConfig
    from mmslm.model.modeling import MMSLMForConditionalGeneration
    from mmslm.training import sample_losses

    torch.manual_seed(0)
    config = MMSLMConfig()
    model = MMSLMForConditionalGeneration(config).to(device)
    images = (config.vision.grid_size // config.pixel_shuffle) ** 2
    ids = torch.randint(10, config.text.vocab_size, (32, images + 60))
    ids[ids == config.image_token_id] = 9
    ids[:, 1 : 1 + images] = config.image_token_id
    labels = ids.clone()
    labels[:, : images + 12] = -100
    size = config.vision.image_size
    batch = {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(32, 1, 3, size, size)}
    return model, {name: tensor.to(device) for name, tensor in batch.items()}, sample_losses


MODELS = {"decoder": decoder, "nano": nano}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The same optimiser for every engine."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def non_private(build: Callable[..., tuple[nn.Module, dict[str, Tensor], LOSSES]], device: str, tied: bool) -> Step:
    """The step that the others are compared with."""
    model, batch, losses = build(device, tied)
    optimizer = adamw(model)

    def step() -> None:
        losses(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(build: Callable[..., tuple[nn.Module, dict[str, Tensor], LOSSES]], device: str, micro: int) -> Step:
    """The one-backward engine with CSPRNG noise, in micro-batches."""
    model, batch, losses = build(device)
    size = len(next(iter(batch.values())))
    private = PrivateOptimizer(
        OneBackward(model, FlatClip(1.0)),
        adamw(model),
        noise_multiplier=1.0,
        sampler=FullSampler(size),
        noise=SecureNoise(),
    )

    def step() -> None:
        for rows in micro_batches(private.draw(), micro):
            part = {name: tensor[int(rows[0]) : int(rows[-1]) + 1] for name, tensor in batch.items()}
            private.backward(losses(model, part))
        private.step()

    return step


def opacus(
    build: Callable[..., tuple[nn.Module, dict[str, Tensor], LOSSES]], device: str, mode: str, tied: bool
) -> Step:
    """Opacus' own engines: hooks, functorch, ghost."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

    model, batch, losses = build(device, tied)
    size = len(next(iter(batch.values())))
    shared = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": size}
    if mode != "ghost":
        wrapped = GradSampleModule(model, force_functorch=mode == "functorch", strict=False)
        optimizer = DPOptimizer(adamw(model), **shared)

        def step() -> None:
            losses(wrapped, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    ghost = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, strict=False)
    clipped = DPOptimizerFastGradientClipping(adamw(model), **shared)

    def two_passes() -> None:
        each = losses(ghost, batch)
        each.mean().backward(retain_graph=True)
        clipped.zero_grad(set_to_none=True)
        factors = ghost.get_clipping_coef()
        ghost.disable_hooks()
        (factors * each).sum().backward()
        ghost.enable_hooks()
        clipped.step()
        clipped.zero_grad(set_to_none=True)

    return two_passes


ENGINES: dict[str, Callable[..., Step]] = {
    "non-private": lambda build, device: non_private(build, device, True),
    "ours": lambda build, device: ours(build, device, 32),
    "ours, 2 micro-batches": lambda build, device: ours(build, device, 16),
    "opacus hooks": lambda build, device: opacus(build, device, "hooks", True),
    "opacus functorch": lambda build, device: opacus(build, device, "functorch", True),
    "non-private, untied": lambda build, device: non_private(build, device, False),
    "opacus ghost, untied": lambda build, device: opacus(build, device, "ghost", False),
}


def seconds(step: Step, device: str) -> float:
    """CPU seconds of one thread, or wall seconds on CUDA."""
    if device != "cpu":
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    step()
    return time.process_time() - start


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return float(line.split()[1]) / 1024
    return float("nan")


def _peak_child(model: str, engine: str, device: str, answer: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    torch.set_num_threads(1)
    if engine.startswith("opacus"):
        import opacus.optimizers  # noqa: F401 (its code is no part of a step's memory)
    gc.collect()
    if device != "cpu":
        ENGINES[engine](MODELS[model], device)()
        answer.put(torch.cuda.max_memory_allocated() / 2**20)
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    ENGINES[engine](MODELS[model], device)()
    answer.put(_status("VmHWM") - before)


def peak(model: str, engine: str, device: str) -> float:
    """MiB at the peak of a first step, in a process of its own; NaN where this system cannot tell."""
    context = multiprocessing.get_context("spawn")  # a forked child may hang in the maths library
    answer = context.Queue()
    child = context.Process(target=_peak_child, args=(model, engine, device, answer))
    child.start()
    child.join(300)
    if child.exitcode is None:
        child.kill()
    return float(answer.get()) if child.exitcode == 0 else float("nan")


def compare(model: str, engines: list[str], device: str, rounds: int, memory: bool) -> None:
    """Prints one table."""
    peaks = {name: peak(model, name, device) if memory else float("nan") for name in engines}
    steps: dict[str, Step] = {}
    for name in engines:
        try:
            steps[name] = ENGINES[name](MODELS[model], device)
            steps[name]()  # warm up, and find out whether it works
        except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
            steps.pop(name, None)
            print(f"  {name}: cannot run this model: {str(error).splitlines()[0][:120]}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            times[name].append(seconds(steps[name], device))
    unit = "CPU s" if device == "cpu" else "s"
    print(f"  {'engine':24} {unit:>8} {'ratio':>7} {'range':>15} {'peak MiB':>9} {'ratio':>6}")
    for name, each in times.items():
        base = "non-private, untied" if "untied" in name and "non-private, untied" in times else "non-private"
        ratios = [t / b for t, b in zip(each, times[base], strict=True)]
        spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
        print(
            f"  {name:24} {statistics.median(each):8.3f} {statistics.median(ratios):7.3f} {spread:>15}"
            f" {peaks[name]:9.0f} {peaks[name] / peaks[base]:6.2f}"
        )


def main() -> None:
    """Reads the arguments and prints a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved steps of each engine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    usual = [name for name in ENGINES if name != "opacus functorch"]
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=usual)
    parser.add_argument("--skip-memory", action="store_true", help="times only")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    random.seed(0)
    engines = [name for name in ENGINES if name in arguments.engines or name == "non-private"]
    for model in arguments.models:
        print(f"{model} on {arguments.device}, torch {torch.__version__}")
        try:
            MODELS[model]("cpu")
        except ImportError as error:
            print(f"  skipped: {error}")
            continue
        compare(model, engines, arguments.device, arguments.rounds, not arguments.skip_memory)


if __name__ == "__main__":
    main()
