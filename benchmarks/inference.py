"""How fast models answer on this machine: one JSON line per case.

Cases: our tiers with random weights (or `--model` a directory), the tiny tier also with int8 weights, and, with
`--others`, the shapes of transformers' BLIP-base and SmolVLM-256M with random weights; interleaved in one run, so that
all see the same machine. Reported per case in CPU-seconds of this process (so that other work on the machine matters
little), medians over the repeats:

    first_token_s     picture in, first token out
    second_question_s the first token of another question about the same picture
    caption_s         picture in, 24 tokens out
    tokens_per_s      while decoding
    bandwidth_bound_tokens_per_s  how often what decoding reads could be read in a second at the measured speed of this
                                  memory: one token reads every weight of the language model once
    peak_over_imports_mb          in a process of its own that loads the case and says one caption

Run: python benchmarks/inference.py --tiers nano tiny --repeats 3 --others
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmslm.generation import Narrator
from mmslm.model import load_tier
from mmslm.pretrained import new_model, save_model
from mmslm.processing import MMSLMProcessor
from mmslm.tokenizer import MMSLMTokenizer

TOKENS = 24
PROMPT, SECOND = "Describe the picture in detail.", "What colour is the cup?"


def resident_mb(field: str) -> float:
    """VmRSS (held now) or VmHWM (the most since `forget_peak`) of this process, in MB; Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    """Start VmHWM anew: imports hold more for a moment than they keep."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def read_speed() -> float:
    """Bytes per second that one thread reads from memory (a sum over 256 MB, best of five)."""
    block = torch.zeros(64_000_000)
    return block.numel() * 4 / min(cpu_seconds(block.sum) for _ in range(5))


def stored_bytes(parts: Any) -> int:
    """Bytes of the weights in a module or modules, quantised ones included."""
    total = 0
    for part in parts if isinstance(parts, list) else [parts]:
        for module in part.modules():
            total += sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))
            packed = getattr(module, "weight", None)
            if callable(packed):  # a quantised matrix is unpacked on demand
                total += packed().numel()
    return total


class Ours:
    """Our model through the Narrator. The end token is silenced, so that every reply has all its tokens."""

    def __init__(self, name: str, folder: Path | str, int8: bool) -> None:
        self.name, self.narrator = name, Narrator.load(folder, int8=int8)
        self.narrator._eos = -1
        model = self.narrator.model
        self.weights = stored_bytes(model)
        self.read_per_token = stored_bytes([model.model.language_model.layers, model.lm_head])

    def first(self, image: Image.Image) -> object:
        self.kept = self.narrator.look(image)
        return next(self.narrator.stream(self.kept, PROMPT, 1))

    def second(self, image: Image.Image) -> object:
        return next(self.narrator.stream(self.kept, SECOND, 1))

    def caption(self, image: Image.Image) -> object:
        return self.narrator.say(self.narrator.look(image), PROMPT, TOKENS)


class Others:
    """A transformers model with random weights through its own generate; a second question starts anew."""

    second = None

    def __init__(self, name: str, model: Any, decoder: Any, inputs: Callable[[], dict[str, Any]]) -> None:
        self.name, self.model, self.inputs = name, model.eval(), inputs
        self.weights, self.read_per_token = stored_bytes(model), stored_bytes(decoder)

    def _generate(self, count: int) -> object:
        return self.model.generate(**self.inputs(), max_new_tokens=count, min_new_tokens=count, do_sample=False)

    def first(self, image: Image.Image) -> object:
        return self._generate(1)

    def caption(self, image: Image.Image) -> object:
        return self._generate(TOKENS)


def write_tier(tier: str, folder: Path) -> Path:
    """A tier with random weights as a model directory, so that it is loaded as any model is; with the base model's
    tokenizer, so that a prompt has as many tokens as it has in use."""
    config = load_tier(tier)
    weights = "random" if config.vision.kind == "tower" else None
    model = new_model(config, tower_weights=weights)
    base = resources.files("mmslm") / "assets" / "base"
    return save_model(model, MMSLMProcessor.build(MMSLMTokenizer.load(Path(str(base))), config), folder)


def other(name: str) -> Others:
    """BLIP-base or SmolVLM-256M (one crop of 512 px: 64 image tokens) with random weights."""
    from transformers import BlipConfig, BlipForConditionalGeneration, SmolVLMConfig, SmolVLMForConditionalGeneration

    if name == "blip-base":
        blip = BlipForConditionalGeneration(BlipConfig())
        return Others(name, blip, blip.text_decoder, lambda: {"pixel_values": torch.rand(1, 3, 384, 384)})
    smol = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            image_token_id=49190,
            scale_factor=4,
            text_config={
                "model_type": "llama",
                "vocab_size": 49280,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "pad_token_id": 2,
            },
            vision_config={
                "image_size": 512,
                "patch_size": 16,
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
            },
        )
    )
    words = torch.full((1, 10), 100)
    smol_ids = torch.cat((torch.full((1, 64), 49190), words), dim=1)
    return Others(
        name,
        smol,
        [smol.model.text_model.layers, smol.lm_head],
        lambda: {
            "input_ids": smol_ids,
            "attention_mask": torch.ones_like(smol_ids),
            "pixel_values": torch.rand(1, 1, 3, 512, 512),
        },
    )


def open_case(name: str, folder: str) -> Ours | Others:
    """The case of a name; `folder` for ours."""
    return Ours(name, folder, name.endswith("-int8")) if folder else other(name)


def picture() -> Image.Image:
    """A photo's worth of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))


def peak_over_imports(name: str, folder: str) -> float:
    """Measured in a process of its own."""
    argv = [sys.executable, __file__, "--child", name, folder]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def child(name: str, folder: str) -> None:
    """Import what the case needs, then load it, say one caption, print the peak above the imports."""
    if folder:
        import open_clip  # noqa: F401
        import timm  # noqa: F401
    else:
        import transformers.models.blip.modeling_blip
        import transformers.models.smolvlm.modeling_smolvlm  # noqa: F401
    torch.set_num_threads(1)
    torch.randn(64, 64) @ torch.randn(64, 64)
    forget_peak()
    imports = resident_mb("VmRSS")
    open_case(name, folder).caption(picture())
    print(round(resident_mb("VmHWM") - imports, 1))


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiers", nargs="*", default=["nano", "tiny"])
    parser.add_argument("--model", help="a model directory, or 'base', instead of tiers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if options.model:
            names = [(options.model, options.model), (f"{options.model}-int8", options.model)]
        else:
            names = []
            for tier in options.tiers:
                folder = str(write_tier(tier, Path(scratch) / tier))
                names += [(f"mmslm-{tier}", folder), (f"mmslm-{tier}-int8", folder)]
        names += [("blip-base", ""), ("smolvlm-256m-one-crop", "")] if options.others else []
        memory = {name: peak_over_imports(name, folder) for name, folder in names}
        image = picture()
        cases = [open_case(name, folder) for name, folder in names]
        for case in cases:
            case.first(image)
        speed = read_speed()
        times: dict[str, dict[str, list[float]]] = {case.name: {} for case in cases}
        for _ in range(options.repeats):
            for case in cases:  # interleaved: a slow minute of the machine hits all cases
                for what in ("first", "second", "caption"):
                    run = getattr(case, what)
                    if run is not None:
                        times[case.name].setdefault(what, []).append(cpu_seconds(lambda run=run: run(image)))
        for case in cases:
            middle = {what: statistics.median(values) for what, values in times[case.name].items()}
            line = {
                "case": case.name,
                "threads": options.threads,
                "weights_mb": round(case.weights / 1e6, 1),
                "first_token_s": round(middle["first"], 4),
                "second_question_s": round(middle.get("second", middle["first"]), 4),
                "caption_s": round(middle["caption"], 4),
                "tokens_per_s": round((TOKENS - 1) / max(middle["caption"] - middle["first"], 1e-9), 1),
                "bandwidth_bound_tokens_per_s": round(speed / case.read_per_token, 1),
                "peak_over_imports_mb": memory[case.name],
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
