"""JSON that has exactly one spelling, and a reader that survives files written to hurt it.

Writing: `canonical_bytes` is the JSON Canonicalization Scheme of RFC 8785 (keys sorted by UTF-16 code unit, numbers as
ECMAScript prints them, no white space, UTF-8), so that a hash or a signature over a report can be checked in any
language. Numbers are IEEE doubles: integers that a double cannot hold are refused rather than rounded.

Reading: `read_json` refuses, before the parser sees it, what is too large, too deep, holds too many values, is not
UTF-8 or carries a byte-order mark; and while parsing: duplicate keys, NaN, infinities, numbers that overflow, integers
that would be rounded, and lone surrogates. A path must be a regular file: no link, device, pipe or directory.
Every refusal is one sentence in an `UnreadableError`; time is linear in the bytes read and memory is bounded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, Final, NoReturn

MAX_BYTES: Final = 64 * 1024 * 1024
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 4_000_000
MAX_INTEGER: Final = 2**53

# A string (possibly broken off at the end of the input) or one structural character. The quantifiers are possessive
# and the closing quote is optional, so no input makes the scan go back: it is linear.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?|[\[\]{},]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class UnreadableError(ValueError):
    """A file or text that cannot be read as what it should be; the message is one sentence for a person."""


# ---------------------------------------------------------------------------------------------------------- writing


def canonical_bytes(value: Any) -> bytes:
    """The RFC 8785 encoding of a JSON value (dict with string keys, list, tuple, str, int, float, bool, None).

    Raises:
        ValueError: a number is not finite or an integer exceeds 2^53, a string holds a lone surrogate.
        TypeError: the value holds something that is not JSON.
    """
    parts: list[str] = []
    _encode(value, parts.append)
    text = "".join(parts)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("A string holds a lone surrogate, which has no UTF-8 encoding; remove it.") from error


def sha256_hex(data: bytes) -> str:
    """Lower-case hexadecimal SHA-256 of some bytes (64 characters)."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, *, chunk: int = 1 << 20) -> str:
    """SHA-256 of a regular file, read in chunks.

    Raises:
        UnreadableError: the path is not a regular file, or cannot be read.
    """
    digest = hashlib.sha256()
    descriptor = open_regular(path)
    try:
        while block := os.read(descriptor, chunk):
            digest.update(block)
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror}).") from error
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _encode(value: Any, emit: Any) -> None:
    if isinstance(value, str):
        emit(encode_basestring(value))
    elif value is None:
        emit("null")
    elif value is True:
        emit("true")
    elif value is False:
        emit("false")
    elif isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise ValueError("An integer beyond 2^53 cannot be written exactly in JSON; write it as a string.")
        emit(str(int(value)))
    elif isinstance(value, float):
        emit(format_number(value))
    elif isinstance(value, dict):
        emit("{")
        separator = ""
        for key in _sorted_keys(value):
            emit(f"{separator}{encode_basestring(key)}:")
            _encode(value[key], emit)
            separator = ","
        emit("}")
    elif isinstance(value, list | tuple):
        emit("[")
        separator = ""
        for item in value:
            if separator:
                emit(separator)
            _encode(item, emit)
            separator = ","
        emit("]")
    else:
        raise TypeError(f"A {type(value).__name__} has no JSON form; give numbers, strings, lists, dicts or None.")


def _sorted_keys(value: dict[str, Any]) -> list[str]:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"A JSON key must be a string, not {type(key).__name__}.")
    # For ASCII keys the order of code points is the order of UTF-16 units, and Python's own sort does.
    if all(map(str.isascii, value)):
        return sorted(value)
    return sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))


def format_number(value: float) -> str:
    """A finite double as ECMAScript's Number.toString prints it (RFC 8785, section 3.2.2.3).

    Raises:
        ValueError: the number is NaN or infinite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a JSON number; a canonical document holds finite numbers only.")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    # repr gives the shortest digits that read back as the same double, which is what ECMAScript asks for.
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    # `point` is the position of the decimal point relative to the first significant digit.
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    power = point - 1
    tail = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'+' if power > 0 else '-'}{abs(power)}"


# ---------------------------------------------------------------------------------------------------------- reading


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `max_bytes` bytes.

    Raises:
        UnreadableError: it is absent, not a regular file (links included), unreadable or larger.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            raise UnreadableError(f"{path} has {size} bytes; at most {max_bytes} are read.")
        blocks: list[bytes] = []
        total = 0
        # The size may change after the look at it, so the limit is kept while reading too.
        while block := os.read(descriptor, 1 << 20):
            total += len(block)
            if total > max_bytes:
                raise UnreadableError(f"{path} grew beyond {max_bytes} bytes while it was read.")
            blocks.append(block)
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror}).") from error
    finally:
        os.close(descriptor)
    return b"".join(blocks)


def read_json(
    path: Path, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES
) -> Any:
    """Parse a JSON file that may have been written by somebody hostile.

    Raises:
        UnreadableError: see the module's description of what is refused.
    """
    data = read_bytes(path, max_bytes=max_bytes)
    return parse_json(data, source=str(path), max_depth=max_depth, max_values=max_values)


def parse_json(
    data: bytes, *, source: str = "the text", max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES
) -> Any:
    """Parse JSON bytes strictly; `source` names them in the refusal.

    Raises:
        UnreadableError: see the module's description of what is refused.
    """
    if not data.strip():
        raise UnreadableError(f"{source} is empty.")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:4]:
        raise UnreadableError(f"{source} is not plain UTF-8 (a byte-order mark or another encoding); save it as UTF-8.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{source} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    _scan_structure(data, source, max_depth, max_values)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_float=_finite_float,
            parse_int=_exact_integer,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UnreadableError(f"{source} is not valid JSON ({error.msg.lower()} at {where}).") from error
    except UnreadableError as error:
        raise UnreadableError(f"{source} {error}") from error
    if _SURROGATE_ESCAPE.search(text):
        _refuse_lone_surrogates(value, source)
    return value


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, for reading; the caller closes it. Raises UnreadableError for anything else."""
    # O_NOFOLLOW refuses a link in the last place; O_NONBLOCK keeps a named pipe from blocking the open.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        status = os.lstat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the name is not usable"
        raise UnreadableError(f"{path} cannot be read ({reason}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(f"{path} is {_file_kind(status.st_mode)}, not a regular file.")
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror}).") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UnreadableError(f"{path} is {_file_kind(mode)}, not a regular file.")
    return descriptor


def _file_kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "something special")


def _scan_structure(data: bytes, source: str, max_depth: int, max_values: int) -> None:
    depth = 0
    values = 1
    for match in _STRUCTURE.finditer(data):
        character = data[match.start()]
        if character == 0x22:  # a string: nothing in it counts
            continue
        if character == 0x2C:  # a comma: one more value
            values += 1
        elif character in (0x5B, 0x7B):
            depth += 1
            values += 1
            if depth > max_depth:
                raise UnreadableError(f"{source} nests deeper than {max_depth} levels.")
        else:
            depth -= 1
        if values > max_values:
            raise UnreadableError(f"{source} holds more than {max_values} values.")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise UnreadableError(f"has the key {key[:60]!r} twice in one object.")
            seen.add(key)
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UnreadableError(f"holds a number that overflows ({text[:30]}).")
    return value


def _exact_integer(text: str) -> int | float:
    if len(text) <= 17 and abs(int(text)) <= MAX_INTEGER:
        return int(text)
    # A large double is spelt with digits only (up to 10^21); any other long integer would have to be rounded.
    if len(text) <= 23 and format_number(float(text)) == text:
        return float(text)
    raise UnreadableError(f"holds an integer beyond 2^53 ({text[:20]}...).")


def _refuse_constant(text: str) -> NoReturn:
    raise UnreadableError(f"holds {text}, which is not a JSON number.")


def _refuse_lone_surrogates(value: Any, source: str) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UnreadableError(f"{source} holds a lone surrogate in a string.") from error
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
