"""Sending a run to a SuperLink and following it, over Flower's Control API.

The bundle that is sent holds a configuration and no code: every machine runs the mmslm that its owner installed, so
whoever starts a run cannot change what a device does with its photos.

What it refuses: a SuperLink that does not answer or whose certificate is not ours, and a run that failed (its reason is
told in the app's own words).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from federated.deploy.programs import ProgramError
from federated.settings import Scalar
from federated.strategy import RunFailed

logger = logging.getLogger(__name__)

_APP_FAILED = re.compile(r"^(ServerApp|Simulation\w*) failed with exception: ", re.IGNORECASE)


def bundle(run_config: Mapping[str, Scalar]) -> bytes:
    """The bundle (FAB) of a run: which apps, and the whole run configuration. No code."""
    import tomli_w
    from flwr.cli.build import build_fab_from_files

    config: dict[str, Any] = {}
    for key, value in run_config.items():
        place = config
        *sections, last = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    project = {
        "project": {"name": "mmslm-run", "version": "1.0.0", "description": "a run of mmslm", "license": "Apache-2.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "mmslm",
                    "fab-include": ["README.md"],
                    "components": {"serverapp": "federated.server_app:app", "clientapp": "federated.client_app:app"},
                    "config": config,
                }
            }
        },
    }
    readme = b"A run of mmslm. It holds no code: install mmslm on every node.\n"
    return build_fab_from_files({"pyproject.toml": tomli_w.dumps(project).encode(), "README.md": readme})[0]


class RefusedError(ProgramError):
    """What the SuperLink would not do. code: Flower's, or None."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


class Control:
    """One SuperLink, as its operator sees it. ``certificate``: the authority's, or None for plain HTTP on loopback."""

    def __init__(self, address: str, certificate: Path | None) -> None:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        self.address = address
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=certificate is None,
            root_certificates=certificate.read_bytes() if certificate is not None else None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def answers(self) -> bool:
        """Whether a SuperLink is there and talks to us."""
        import httpx
        from flwr.proto.control_pb2 import ListRunsRequest

        try:
            self._client.ListRuns(ListRunsRequest(limit=1))
        except httpx.HTTPError:
            return False
        return True

    def register(self, key: bytes, name: str) -> bool:
        """Let the node with this public key take part; False where it was registered before."""
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.error import ApiErrorCode

        try:
            self._call("RegisterNode", RegisterNodeRequest(public_key=key, name=name))
        except RefusedError as error:
            if error.code == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                return False
            raise
        return True

    def nodes(self) -> list[tuple[str, str]]:
        """Name and state (online, offline, registered ...) of every node, by name."""
        from flwr.proto.control_pb2 import ListNodesRequest

        found = self._call("ListNodes", ListNodesRequest()).nodes_info
        return sorted((node.name or str(node.node_id), node.status) for node in found if node.status != "unregistered")

    def unregister(self, key: bytes) -> bool:
        """Refuse the node with this public key from now on; False where it was not registered."""
        from flwr.proto.control_pb2 import ListNodesRequest, UnregisterNodeRequest

        for node in self._call("ListNodes", ListNodesRequest()).nodes_info:
            if node.public_key == key and node.status != "unregistered":
                self._call("UnregisterNode", UnregisterNodeRequest(node_id=node.node_id))
                return True
        return False

    def runs(self) -> list[tuple[int, str]]:
        """Number and state of every run, oldest first."""
        from flwr.proto.control_pb2 import ListRunsRequest

        found = self._call("ListRuns", ListRunsRequest()).run_dict.values()
        ordered = sorted(found, key=lambda run: run.pending_at)
        return [(run.run_id, f"{run.status.status} {run.status.sub_status}".strip()) for run in ordered]

    def start(self, run_config: Mapping[str, Scalar], *, simulated_nodes: int | None = None, cpus: int = 1) -> int:
        """Start a run; its number. ``simulated_nodes``: for a SuperLink that simulates, how many devices."""
        import hashlib

        from flwr.common.serde import fab_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.federation_config_pb2 import SimulationConfig
        from flwr.supercore.fab import Fab

        content = bundle(run_config)
        simulation = None
        if simulated_nodes is not None:
            simulation = SimulationConfig(num_supernodes=simulated_nodes, client_resources_num_cpus=cpus)
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})),
            override_federation_config=simulation,
        )
        answer = self._call("StartRun", request)
        if not answer.HasField("run_id"):
            raise ProgramError(
                f"the SuperLink at {self.address} did not start the run: {answer.note or 'no reason given'}."
            )
        return int(answer.run_id)

    def finished(self, run: int) -> bool:
        """Whether a run has ended well. Raises RunFailed where it ended otherwise."""
        from flwr.proto.control_pb2 import ListRunsRequest

        known = self._call("ListRuns", ListRunsRequest(run_id=run)).run_dict
        if run not in known:
            raise ProgramError(f"the SuperLink at {self.address} knows no run {run}; was its database replaced?")
        status = known[run].status
        if status.status != "finished":
            return False
        if status.sub_status == "completed":
            return True
        reason = _APP_FAILED.sub("", status.details) or f"it ended as {status.sub_status!r}, without a reason"
        raise RunFailed(reason)

    def stop(self, run: int) -> None:
        """Ask the SuperLink to end a run; what was saved stays saved."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._call("StopRun", StopRunRequest(run_id=run))

    def _call(self, method: str, request: Any) -> Any:
        import httpx
        from flwr.supercore.error import FlowerError

        try:
            return getattr(self._client, method)(request)
        except httpx.TransportError as error:
            raise ProgramError(
                f"the SuperLink at {self.address} does not answer ({error}); is it running, and is its certificate "
                "signed by this deployment's authority?"
            ) from None
        except httpx.HTTPStatusError as error:
            said = FlowerError.from_json(error.response.text)
            reason = said.message if said is not None else f"status {error.response.status_code}"
            raise RefusedError(
                f"the SuperLink at {self.address} refused {method}: {reason}", said.code if said is not None else None
            ) from None
