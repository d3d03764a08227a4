"""One spelling for one value (RFC 8785), and a reader that refuses hostile files quickly, in one sentence."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.canonical import UnreadableError, canonical_bytes, format_number, parse_json, read_json, sha256_file

# RFC 8785, appendix B: the bits of a double and how ECMAScript prints it.
RFC_NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("bits", "text"), RFC_NUMBERS.items())
def test_numbers_are_printed_as_the_rfc_prints_them(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert format_number(number) == text


def test_the_rfc_example_has_the_rfc_bytes() -> None:
    # RFC 8785, section 3.2.2 and 3.2.3.
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_bytes(value) == expected.encode()


def test_keys_are_sorted_by_utf16_units() -> None:
    # RFC 8785, section 3.2.3: the emoji's surrogates sort before U+FB33.
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    order = list(json.loads(canonical_bytes(dict.fromkeys(keys, 0))))
    assert order == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@settings(max_examples=200, deadline=None)
@given(JSON_VALUES)
def test_what_is_written_is_read_back_and_written_alike(value: object) -> None:
    data = canonical_bytes(value)
    again = parse_json(data)
    assert again == value
    assert canonical_bytes(again) == data


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**53 + 1, "\ud800", {"a": ["\udfff"]}])
def test_what_has_no_exact_spelling_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\."):
        canonical_bytes(value)


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1}}, object(), b"bytes"])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_bytes(value)


HOSTILE = {
    "empty": (b"", "is empty"),
    "blank": (b"  \n ", "is empty"),
    "nesting of lists": (b"[" * 1_000_000, "nests deeper"),
    "nesting of objects": (b'{"a":' * 1_000_000, "nests deeper"),
    "nesting that is closed": (b"[" * 100 + b"]" * 100, "nests deeper"),
    "brackets after an escaped quote": (b'{"a\\"' + b"[" * 10 + b'":' + b"[" * 100, "nests deeper"),
    "NaN": (b'{"epsilon":NaN}', "NaN"),
    "Infinity": (b'{"epsilon":Infinity}', "Infinity"),
    "minus infinity": (b'{"epsilon":-Infinity}', "-Infinity"),
    "a number that overflows": (b'{"epsilon":1e999}', "overflows"),
    "an integer with a million digits": (b'{"n":' + b"9" * 1_000_000 + b"}", "2\\^53"),
    "an integer beyond 2^53": (b'{"n":9007199254740993}', "2\\^53"),
    "a duplicate key": (b'{"epsilon":1,"epsilon":8}', "twice"),
    "a duplicate key, escaped": (b'{"epsilon":1,"\\u0065psilon":8}', "twice"),
    "a byte-order mark": (b'\xef\xbb\xbf{"a":1}', "UTF-8"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "UTF-8"),
    "UTF-16 without a mark": ('{"a":1}'.encode("utf-16-be"), "UTF-8"),
    "UTF-32": ('{"a":1}'.encode("utf-32-le"), "UTF-8"),
    "Latin-1": ('{"a":"é"}'.encode("latin-1"), "UTF-8"),
    "overlong UTF-8": (b'{"a":"\xc0\xaf"}', "UTF-8"),
    "a lone surrogate": (b'{"a":"\\ud800"}', "surrogate"),
    "a lone surrogate as key": (b'{"\\udfff":1}', "surrogate"),
    "an encoded surrogate": (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
    "something after the end": (b'{"a":1} x', "valid JSON"),
    "a string without end": (b'{"a":"' + b'\\"' * 500_000, "valid JSON"),
    "ten million values": (b"[" + b"0," * 10_000_000 + b"0]", "more than"),
    "ten million objects": (b"[" + b"{}," * 4_000_000 + b"{}]", "more than"),
    "comments": (b"{/* */}", "valid JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_in_one_sentence_and_in_time(name: str) -> None:
    data, reason = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(UnreadableError, match=reason) as caught:
        parse_json(data, source="report.json")
    assert time.process_time() - started < 10
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300


def test_deep_but_allowed_nesting_and_surrogate_pairs_are_read() -> None:
    assert parse_json(b"[" * 32 + b"]" * 32) is not None
    assert parse_json(b'{"a":"\\ud83d\\ude00 [[[[ {{{{ \\" "}') == {"a": '\U0001f600 [[[[ {{{{ " '}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text('{"a":1}')
    assert read_json(good) == {"a": 1}
    link = tmp_path / "link.json"
    link.symlink_to(good)
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path, reason in [
        (link, "symbolic link"),
        (pipe, "pipe"),
        (tmp_path, "directory"),
        (Path("/dev/zero"), "device"),
        (tmp_path / "absent.json", "No such file"),
        (tmp_path / "nul\0.json", "not usable"),
        (tmp_path / ("x" * 5000), "name too long"),
    ]:
        with pytest.raises(UnreadableError, match=f"(?i){reason}"):
            read_json(path)
        with pytest.raises(UnreadableError, match=f"(?i){reason}"):
            sha256_file(path)


def test_a_gigabyte_of_nesting_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.json"
    with bomb.open("wb") as file:  # a sparse file: its size is what a reader would have to swallow
        file.write(b"[" * 4096)
        file.truncate(1 << 30)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20));"
        "from pathlib import Path; from privacy.canonical import read_json, UnreadableError\n"
        "try: read_json(Path(sys.argv[1]))\n"
        "except UnreadableError as error: print(error)"
    )
    started = time.process_time()
    done = subprocess.run([sys.executable, "-c", code, str(bomb)], capture_output=True, text=True, check=True)
    assert "at most" in done.stdout
    assert time.process_time() - started < 10


def test_the_largest_accepted_document_stays_within_bounded_memory(tmp_path: Path) -> None:
    # The worst that passes every limit: as many empty objects as are allowed.
    path = tmp_path / "many.json"
    path.write_bytes(b"[" + b"{}," * 1_900_000 + b"{}]")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from pathlib import Path; from privacy.canonical import read_json; print(len(read_json(Path(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1_900_001  # within one gibibyte of address space
