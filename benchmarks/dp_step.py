"""What privacy costs: one training step with per-sample clipping, against the same step without.

    python benchmarks/dp_step.py [--rounds 3] [--device cpu|cuda] [--models decoder nano ...] [--engines ...]
                                 [--batch 32] [--skip-memory]

Engines are interleaved (one step of each, round after round, in a changing order), so that a busy machine slows all of
them alike; each round gives a ratio to the non-private step of the same round, and the table shows the median and the
range of these ratios. CPU time is that of one thread; on CUDA it is wall time after synchronising. Peak memory is that
of a fresh process, from before the model is built to after a first step. Every line of a table is printed as JSON, too.

Every step is whole: forward, backward, clipping, noise, AdamW. Models: `decoder` (8 layers, width 256, vocabulary 8192,
96 tokens, batch 32, tied, 10.5 million parameters), every tier of mmslm (`nano`, `tiny`, ...) with pictures and all
that is not frozen trained, and each tier with `-experts`: only low-rank image experts trained, the base frozen.
Opacus' ghost clipping refuses tied tables, so it runs on an untied copy, against that copy's non-private step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import random
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privacy.clipping.engine import OneBackward
from privacy.clipping.kinds import FlatClip
from privacy.noise import SecureNoise
from privacy.optimizer import MICRO_BATCH, DPAdamW, PrivateOptimizer, micro_batches
from privacy.sampling import FullSampler

Step = Callable[[], None]
LOSSES = Callable[[nn.Module, dict[str, Tensor]], Tensor]
BATCH = 32


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
    batch = {"ids": torch.randint(0, 8192, (BATCH, 96), device=device)}

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits, ids = model(batch["ids"]), batch["ids"]
        each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return each.view(len(ids), -1).mean(dim=1)

    return Decoder(tied).to(device), batch, losses


def tier(name: str, experts: bool, device: str, tied: bool = True) -> tuple[nn.Module, dict[str, Tensor], LOSSES]:
    """A tier of mmslm: a picture and 60 tokens of text per sample, 48 of which it learns to say.

    experts: train low-rank image experts (rank 8) in decoder and projector only. Raises ValueError for an unknown tier.
    """
    from mmslm.model.modeling import MMSLMForConditionalGeneration
    from mmslm.model.tiers import load_tier

    torch.manual_seed(0)
    config = load_tier(name)
    config.tie_word_embeddings = tied
    model = MMSLMForConditionalGeneration(config).to(device)
    if experts:
        model.add_image_experts(8, include=("decoder", "projector"))
        model.freeze_base()
        model.to(device)
    images = (config.vision.grid_size // config.pixel_shuffle) ** 2
    ids = torch.randint(10, config.text.vocab_size, (BATCH, images + 60))
    ids[ids == config.image_token_id] = 9
    ids[:, 1 : 1 + images] = config.image_token_id
    labels = ids.clone()
    labels[:, : images + 12] = -100
    size = config.vision.image_size

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:  # also through another library's wrapper
        return model(**batch, logits_at="labels").per_sample_loss

    batch = {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(BATCH, 1, 3, size, size)}
    return model, {key: tensor.to(device) for key, tensor in batch.items()}, losses


def models() -> dict[str, Callable[..., tuple[nn.Module, dict[str, Tensor], LOSSES]]]:
    """Builders by name. The tiers are those that `load_tier` knows; none where mmslm is absent."""
    try:
        from mmslm.model.tiers import tier_names
    except ImportError:
        return {"decoder": decoder}
    tiers = {name: partial(tier, name, False) for name in tier_names()}
    with_experts = {f"{name}-experts": partial(tier, name, True) for name in tier_names()}
    return {"decoder": decoder, **tiers, **with_experts}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The same optimiser for every engine."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)


def non_private(
    build: Callable[..., tuple[nn.Module, dict[str, Tensor], LOSSES]], device: str, tied: bool, micro: int
) -> Step:
    """The step that the others are compared with; with gradient accumulation where micro is below the batch."""
    model, batch, losses = build(device, tied)
    optimizer = adamw(model)

    def step() -> None:
        for start in range(0, BATCH, micro):
            part = {name: tensor[start : start + micro] for name, tensor in batch.items()}
            (losses(model, part).sum() / BATCH).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(
    build: Callable[..., tuple[nn.Module, dict[str, Tensor], LOSSES]], device: str, micro: int, dp_adamw: bool = False
) -> Step:
    """The one-backward engine with CSPRNG noise, in micro-batches. dp_adamw: its own AdamW instead of torch's fused."""
    model, batch, losses = build(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    private = PrivateOptimizer(
        OneBackward(model, FlatClip(1.0)),
        DPAdamW(trained, lr=1e-4) if dp_adamw else adamw(model),
        noise_multiplier=1.0,
        sampler=FullSampler(BATCH),
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
    shared = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": BATCH}
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
    "non-private": lambda build, device: non_private(build, device, True, BATCH),
    "non-private, pieces of 8": lambda build, device: non_private(build, device, True, MICRO_BATCH),
    "ours": lambda build, device: ours(build, device, MICRO_BATCH),
    "ours, DPAdamW": lambda build, device: ours(build, device, MICRO_BATCH, dp_adamw=True),
    "ours, pieces of 16": lambda build, device: ours(build, device, 16),
    "ours, one piece": lambda build, device: ours(build, device, BATCH),
    "opacus hooks": lambda build, device: opacus(build, device, "hooks", True),
    "opacus functorch": lambda build, device: opacus(build, device, "functorch", True),
    "non-private, untied": lambda build, device: non_private(build, device, False, BATCH),
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


def _peak_child(
    model: str,
    engine: str,
    device: str,
    batch: int,
    answer: multiprocessing.Queue,  # type: ignore[type-arg]
) -> None:
    global BATCH
    BATCH = batch
    torch.set_num_threads(1)
    build = models()[model]
    build("cpu")  # what a model's first use imports is no part of a step's memory either
    if engine.startswith("opacus"):
        import opacus.optimizers  # noqa: F401 (its code is no part of a step's memory)
    gc.collect()
    if device != "cpu":
        ENGINES[engine](build, device)()
        answer.put(torch.cuda.max_memory_allocated() / 2**20)
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    ENGINES[engine](build, device)()
    answer.put(_status("VmHWM") - before)


def peak(model: str, engine: str, device: str) -> float:
    """MiB at the peak of a first step, in a process of its own; NaN where this system cannot tell."""
    context = multiprocessing.get_context("spawn")  # a forked child may hang in the maths library
    answer = context.Queue()
    child = context.Process(target=_peak_child, args=(model, engine, device, BATCH, answer))
    child.start()
    child.join(900)
    if child.exitcode is None:
        child.kill()
    return float(answer.get()) if child.exitcode == 0 else float("nan")


def compare(model: str, engines: list[str], device: str, rounds: int, memory: bool) -> None:
    """Prints one table, and a line of JSON for each of its rows."""
    build = models()[model]
    peaks = {name: peak(model, name, device) if memory else float("nan") for name in engines}
    steps: dict[str, Step] = {}
    for name in engines:
        try:
            steps[name] = ENGINES[name](build, device)
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
    rows = []
    print(f"  {'engine':24} {unit:>8} {'ratio':>7} {'range':>15} {'peak MiB':>9} {'ratio':>6}")
    for name, each in times.items():
        base = "non-private, untied" if "untied" in name and "non-private, untied" in times else "non-private"
        ratios = [t / b for t, b in zip(each, times[base], strict=True)]
        spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
        print(
            f"  {name:24} {statistics.median(each):8.3f} {statistics.median(ratios):7.3f} {spread:>15}"
            f" {peaks[name]:9.0f} {peaks[name] / peaks[base]:6.2f}"
        )
        row = {
            "benchmark": "dp_step",
            "model": model,
            "engine": name,
            "device": device,
            "batch": BATCH,
            "seconds": statistics.median(each),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "ratio_of_least": min(each) / min(times[base]),
            "peak_mib": peaks[name],
            "peak_ratio": peaks[name] / peaks[base],
            "rounds": rounds,
            "base": base,
        }
        rows.append({key: None if value != value else value for key, value in row.items()})  # NaN is no JSON
    for row in rows:
        print(json.dumps(row), flush=True)


def main() -> None:
    """Reads the arguments and prints a table for each model."""
    global BATCH
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    known = models()
    parser.add_argument("--rounds", type=int, default=3, help="interleaved steps of each engine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--models", nargs="+", choices=list(known), default=["decoder", "nano", "nano-experts"])
    usual = [name for name in ENGINES if name not in ("opacus functorch", "ours, DPAdamW")]
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=usual)
    parser.add_argument("--batch", type=int, default=BATCH, help="samples per step")
    parser.add_argument("--skip-memory", action="store_true", help="times only")
    arguments = parser.parse_args()
    BATCH = arguments.batch
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    random.seed(0)
    engines = [name for name in ENGINES if name in arguments.engines or name == "non-private"]
    for model in arguments.models:
        trained = [p.numel() for p in known[model]("cpu")[0].parameters() if p.requires_grad]
        print(
            f"{model} on {arguments.device}, {sum(trained)} parameters trained, torch {torch.__version__}", flush=True
        )
        compare(model, engines, arguments.device, arguments.rounds, not arguments.skip_memory)


if __name__ == "__main__":
    main()
