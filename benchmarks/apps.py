"""How long a person waits: from start to a usable page, and from a photo to its announced description.

Run ``python benchmarks/apps.py --model base --photos 40``; ``--tier tiny`` times that size with random weights instead
(they never end a sentence, so it is cut after as many pieces as the base model's median description has), and
``--crowd 50`` lets so many pages ask at once: whether all are answered, in the order in which they came, how long they
wait, and how much memory that takes beyond one page's. The photos are rendered scenes at 768 pixels, sent as PNG
through the real HTTP path (queue, event stream), one after another as one open page; the last update is what the page
announces. It prints medians and 95th percentiles, and where the time goes, measured inside the same process: decoding,
looking, the first word, the rest, and what is left for HTTP and the queue. Nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import resource
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Run as a script, this file's own folder comes first, and this file would be found in place of the package "apps".
sys.path[0] = str(Path(__file__).parents[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="a model's folder, a run's folder, or base")
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--level", default="detailed", choices=("short", "detailed", "hazard", "text"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tier", default=None, help="a tier with random weights instead of a model, for example tiny")
    parser.add_argument("--pieces", type=int, default=24, help="where a tier's endless sentences are cut")
    parser.add_argument("--crowd", type=int, default=0, help="how many pages ask at once, instead of one after another")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of sentences")
    options = parser.parse_args(arguments)

    began = time.perf_counter()
    from apps.captioner import Captioner
    from apps.loading import Loading
    from apps.shell import serve

    def load() -> Any:
        import torch

        from apps.models import find_model
        from mmslm.generation import Narrator

        torch.set_num_threads(options.threads)
        return untrained(options.tier) if options.tier else Narrator.load(find_model(options.model))

    model = Loading(load)
    narrator = Timed(model, options.pieces if options.tier else None)
    with serve({"captioner": Captioner(narrator)}, port=0) as address:
        urllib.request.urlopen(address, timeout=60).read()
        usable = time.perf_counter()
        model.start()
        model.wait()
        loaded = time.perf_counter()
        if options.crowd:
            one(address, narrator, photos(0)[0], 0, options.level)
            facts = crowd(address, narrator, photos(options.crowd)[1:], options.level)
            print(json.dumps(facts) if options.json else told(facts))
            return
        rows = [
            one(address, narrator, photo, index, options.level) for index, photo in enumerate(photos(options.photos))
        ]
    warm = rows[1:]
    facts = {
        "model": options.tier or options.model,
        "level": options.level,
        "photos": len(warm),
        "threads": options.threads,
        "start_s": {"to a usable page": usable - began, "then the model": loaded - usable},
        "photo_to_announced_s": spread([row["total"] for row in warm]),
        "photo_to_first_word_s": spread([row["first"] for row in warm]),
        "where_the_time_goes_s": {
            name: statistics.median(row[name] for row in warm) for name in ("look", "talk", "rest")
        },
        "pieces": statistics.median(row["pieces"] for row in warm),
        "first_photo_s": rows[0]["total"],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if options.json:
        print(json.dumps(facts))
        return
    waited = facts["photo_to_announced_s"]
    start = facts["start_s"]
    print(f"start to a usable page: {start['to a usable page']:.1f} s (model {start['imports and model']:.1f} s)")
    print(
        f"photo to announced description: median {waited['median']:.2f} s, p95 {waited['p95']:.2f} s ({len(warm)} photos)"
    )
    print(f"photo to first word: median {facts['photo_to_first_word_s']['median']:.2f} s")
    shares = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in facts["where_the_time_goes_s"].items())
    print(f"where the time goes (medians): {shares}; the very first photo took {facts['first_photo_s']:.2f} s")
    print(f"pieces of a description: {facts['pieces']:.0f} (median)")
    print(f"peak memory: {facts['peak_memory_mb']:.0f} MB, {options.threads} threads")


class Timed:
    """A narrator that notes how long looking and talking took."""

    def __init__(self, narrator: Any, pieces: int | None = None) -> None:
        self.narrator, self.limit = narrator, pieces
        self.look_s = self.talk_s = 0.0
        self.pieces = 0
        self.seen: list[bytes] = []

    @property
    def calibration(self) -> Any:
        return self.narrator.calibration

    def look(self, image: Any) -> Any:
        self.seen.append(hashlib.sha256(image.tobytes()).digest())
        began = time.perf_counter()
        encoded = self.narrator.look(image)
        self.look_s += time.perf_counter() - began
        return encoded

    def stream(self, encoded: Any, prompt: str, max_new_tokens: int = 48) -> Iterator[Any]:
        pieces = self.narrator.stream(encoded, prompt, max_new_tokens=min(max_new_tokens, self.limit or max_new_tokens))
        while True:
            began = time.perf_counter()
            piece = next(pieces, None)
            self.talk_s += time.perf_counter() - began
            if piece is None:
                return
            self.pieces += 1
            yield piece

    def confidence_of(self, confidences: Sequence[float]) -> float:
        return float(self.narrator.confidence_of(confidences))


def untrained(tier: str) -> Any:
    """A narrator of a tier's size with random weights, and the base model's words."""
    from apps.models import base_model
    from mmslm.generation import Narrator
    from mmslm.model import load_tier
    from mmslm.pretrained import load_model, new_model
    from mmslm.processing import MMSLMImageProcessor, MMSLMProcessor

    tokenizer = load_model(base_model())[1].tokenizer
    config = load_tier(tier)
    config.image_token_id = tokenizer.image_token_id
    vision = config.vision
    model = new_model(config, tower_weights="random" if vision.kind == "tower" else None)
    processor = MMSLMProcessor(
        MMSLMImageProcessor(size={"height": vision.image_size, "width": vision.image_size}),
        tokenizer,
        tokens_per_image=model.config.tokens_per_image,
    )
    return Narrator(model, processor)


def crowd(address: str, narrator: Timed, given: Sequence[str], level: str) -> dict[str, Any]:
    """So many pages at once, each with its own photo and session; joined one by one, so that there is an order."""
    from apps.sessions import receive

    expected = [hashlib.sha256(receive(photo).tobytes()).digest() for photo in given]
    narrator.seen.clear()
    before = resident_mb()
    began = time.perf_counter()
    ended: dict[int, float] = {}
    texts: dict[int, bool] = {}
    peak = [before]
    streams = []
    for index, photo in enumerate(given):
        join(address, f"crowd-{index}", {"id": f"c{index}", "level": level, "image": photo})
        streams.append(threading.Thread(target=lambda i=index: texts.update({i: listened(address, i, ended)})))
        streams[-1].start()
    while any(stream.is_alive() for stream in streams):
        peak.append(resident_mb())
        time.sleep(0.1)
    waits = [ended[index] - began for index in sorted(ended)]
    return {
        "pages": len(given),
        "answered": sum(texts.values()),
        "in_order": narrator.seen == expected,
        "all_s": max(waits),
        "wait_s": spread(waits),
        "memory_mb": {"one page": before, "peak": max(peak), "per page": (max(peak) - before) / len(given)},
    }


def listened(address: str, index: int, ended: dict[int, float]) -> bool:
    """Whether one page of a crowd was answered."""
    url = f"{address}gradio_api/queue/data?session_hash=crowd-{index}"
    with urllib.request.urlopen(url, timeout=600) as stream:
        for line in stream:
            if line.startswith(b"data:") and json.loads(line[5:])["msg"] == "process_completed":
                ended[index] = time.perf_counter()
                return bool(json.loads(line[5:])["success"])
    return False


def told(facts: dict[str, Any]) -> str:
    """A crowd's figures for a person."""
    memory, wait = facts["memory_mb"], facts["wait_s"]
    return (
        f"{facts['answered']} of {facts['pages']} pages answered, {'in' if facts['in_order'] else 'NOT in'} the order they "
        f"came, all within {facts['all_s']:.1f} s; wait: median {wait['median']:.1f} s, p95 {wait['p95']:.1f} s\n"
        f"memory: {memory['one page']:.0f} MB with one page, {memory['peak']:.0f} MB at the peak, "
        f"{memory['per page']:.1f} MB a page"
    )


def resident_mb() -> float:
    """Memory of this process that lies in RAM."""
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def join(address: str, session: str, event: dict[str, Any]) -> None:
    """One event into the queue, as the page sends it."""
    config = json.loads(urllib.request.urlopen(f"{address}config", timeout=60).read())
    number = next(
        item["id"] for item in config["dependencies"] for target in item["targets"] if target[1] == "describe"
    )
    body = {"data": [], "event_data": event, "fn_index": number, "session_hash": session, "trigger_id": 1}
    request = urllib.request.Request(
        f"{address}gradio_api/queue/join", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).read()


def photos(count: int) -> list[str]:
    """Rendered scenes as data URLs."""
    from mmslm.data.scenes import public_photo

    urls = []
    for index in range(count + 1):
        buffer = io.BytesIO()
        public_photo(700_000 + index).image(768).save(buffer, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return urls


def one(address: str, narrator: Timed, photo: str, index: int, level: str) -> dict[str, float]:
    """Seconds from sending one photo to the first word and to the last update."""
    session = "benchmark"
    event = {"id": f"r{index}", "level": level, "image": photo}
    narrator.look_s = narrator.talk_s = 0.0
    narrator.pieces = 0
    began = time.perf_counter()
    join(address, session, event)
    first = 0.0
    updates = 0
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={session}", timeout=120) as stream:
        for line in stream:
            if not line.startswith(b"data:"):
                continue
            message = json.loads(line[5:])["msg"]
            if message == "process_generating":
                updates += 1
                # The first update only says that the photo is held.
                if updates == 2:
                    first = time.perf_counter() - began
            elif message == "process_completed":
                break
    total = time.perf_counter() - began
    return {
        "total": total,
        "first": first or total,
        "look": narrator.look_s,
        "talk": narrator.talk_s,
        "pieces": narrator.pieces,
        "rest": total - narrator.look_s - narrator.talk_s,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile (nearest rank)."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "p95": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]}


if __name__ == "__main__":
    main()
