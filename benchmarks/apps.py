"""How long a person waits: from start to a usable page, and from a photo to its announced description.

Run ``python benchmarks/apps.py --model base --photos 40``. The photos are rendered scenes at 768 pixels, sent as PNG
through the real HTTP path (queue, event stream), one after another as one open page; the last update is what the page
announces. It prints medians and 95th percentiles, and where the time goes, measured inside the same process: decoding,
looking, the first word, the rest, and what is left for HTTP and the queue. Nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import resource
import statistics
import sys
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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    began = time.perf_counter()
    import torch

    from apps.captioner import Captioner
    from apps.models import find_model
    from apps.shell import serve
    from mmslm.generation import Narrator

    torch.set_num_threads(options.threads)
    narrator = Timed(Narrator.load(find_model(options.model)))
    loaded = time.perf_counter()
    with serve({"captioner": Captioner(narrator)}, port=0) as address:
        urllib.request.urlopen(address, timeout=60).read()
        usable = time.perf_counter()
        rows = [
            one(address, narrator, photo, index, options.level) for index, photo in enumerate(photos(options.photos))
        ]
    warm = rows[1:]
    facts = {
        "model": options.model,
        "level": options.level,
        "photos": len(warm),
        "threads": options.threads,
        "start_s": {"imports and model": loaded - began, "server": usable - loaded, "to a usable page": usable - began},
        "photo_to_announced_s": spread([row["total"] for row in warm]),
        "photo_to_first_word_s": spread([row["first"] for row in warm]),
        "where_the_time_goes_s": {
            name: statistics.median(row[name] for row in warm) for name in ("look", "talk", "rest")
        },
        "first_photo_s": rows[0]["total"],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if options.json:
        print(json.dumps(facts, indent=1))
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
    print(f"peak memory: {facts['peak_memory_mb']:.0f} MB, {options.threads} threads")


class Timed:
    """A narrator that notes how long looking and talking took."""

    def __init__(self, narrator: Any) -> None:
        self.narrator = narrator
        self.look_s = self.talk_s = 0.0

    def look(self, image: Any) -> Any:
        began = time.perf_counter()
        encoded = self.narrator.look(image)
        self.look_s += time.perf_counter() - began
        return encoded

    def stream(self, encoded: Any, prompt: str, max_new_tokens: int = 48) -> Iterator[Any]:
        pieces = self.narrator.stream(encoded, prompt, max_new_tokens=max_new_tokens)
        while True:
            began = time.perf_counter()
            piece = next(pieces, None)
            self.talk_s += time.perf_counter() - began
            if piece is None:
                return
            yield piece

    def confidence_of(self, confidences: Sequence[float]) -> float:
        return float(self.narrator.confidence_of(confidences))


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
    config = json.loads(urllib.request.urlopen(f"{address}config", timeout=30).read())
    number = next(
        item["id"] for item in config["dependencies"] for target in item["targets"] if target[1] == "describe"
    )
    session = "benchmark"
    event = {"id": f"r{index}", "level": level, "image": photo}
    body = {"data": [], "event_data": event, "fn_index": number, "session_hash": session, "trigger_id": 1}
    narrator.look_s = narrator.talk_s = 0.0
    began = time.perf_counter()
    request = urllib.request.Request(
        f"{address}gradio_api/queue/join", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).read()
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
        "rest": total - narrator.look_s - narrator.talk_s,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile (nearest rank)."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "p95": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]}


if __name__ == "__main__":
    main()
