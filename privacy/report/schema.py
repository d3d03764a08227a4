"""The report's JSON Schema (draft 2020-12): made from the models, published beside them as report.schema.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from privacy.report.models import SCHEMA_VERSION, Report

SCHEMA_PATH = Path(__file__).with_name("report.schema.json")


def json_schema() -> dict[str, Any]:
    """The published schema. A test holds it equal to `generate`."""
    return dict(json.loads(SCHEMA_PATH.read_text(encoding="utf-8")))


def generate() -> dict[str, Any]:
    """The schema as the models define it now."""
    schema = Report.model_json_schema(mode="serialization")
    entry = {
        "type": "object",
        "required": ["kind", "index", "hash"],
        "properties": {
            "kind": {"enum": ["header", "event", "remark", "repair"]},
            "index": {"type": "integer", "minimum": 0},
            "hash": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        },
    }
    schema["$defs"]["LedgerCopy"]["properties"]["entries"]["items"] = entry
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA_VERSION.replace('/', ':')}",
        **schema,
    }
