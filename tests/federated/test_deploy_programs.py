"""Flower's programs call nobody, also when Flower was imported before anybody said so."""

from __future__ import annotations

import urllib.request

import pytest
from flwr.supercore import telemetry

from federated.deploy.programs import QUIET, be_quiet


def test_telemetry_is_off_although_flower_was_imported_with_it_on(monkeypatch):
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)  # put back afterwards
    monkeypatch.setattr(telemetry, "FLWR_TELEMETRY_ENABLED", "1")

    def called(*request, **options):
        raise AssertionError("it called elsewhere")

    monkeypatch.setattr(urllib.request, "urlopen", called)
    with pytest.raises(AssertionError, match="called elsewhere"):
        telemetry.create_event(telemetry.EventType.RUN_SUPERNODE_ENTER, None)
    be_quiet()
    assert telemetry.create_event(telemetry.EventType.RUN_SUPERNODE_ENTER, None) == "disabled"
