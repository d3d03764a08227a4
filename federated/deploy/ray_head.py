"""Ray's own command line with more patience: ``python -m federated.deploy.ray_head AGENT_PORT SECONDS start --head ...``

Ray's raylet ends itself where the agent beside it needs more than 15 s to say on which port it listens, though that port
was given; and Ray gives its node 30 s to start. On a busy machine neither is enough, and neither can be set. So the raylet
is told the port, and the node is given SECONDS.

What it refuses: nothing; Ray's command line refuses for itself.
"""

from __future__ import annotations

import sys
import time
from typing import Any


def main() -> None:
    """Patch what Ray cannot be told, then be ``ray``."""
    import ray._private.services as services
    from ray.scripts.scripts import main as ray

    port, seconds = sys.argv.pop(1), float(sys.argv.pop(1))
    start, get_node = services.start_ray_process, services.get_node

    def told(command: list[str], process_type: str, *more: Any, **options: Any) -> Any:
        if process_type == "raylet":
            command = [*command, f"--dashboard_agent_listen_port={port}"]
        return start(command, process_type, *more, **options)

    def waited_for(*which: Any, **more: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return get_node(*which, **more)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    services.start_ray_process, services.get_node = told, waited_for
    ray()


if __name__ == "__main__":
    main()
