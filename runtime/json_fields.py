"""Reads JSON that anybody may have written: each field has its type, or an error names the field."""

import contextlib
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pocketsam.errors import IntegrityError

Json = dict[str, Any]
T = TypeVar("T")


MAX_DEPTH = 50
MAX_NUMBER = 2**63


def check_json(value: object, where: Path) -> None:
    """Raises IntegrityError for JSON that is nested too deep, or has a number or text that is none.

    Such are numbers beyond all sizes, and halves of characters, which cannot be printed.

    Args:
        value: what ``json.loads`` returned.
        where: path of the file.
    """
    waiting: list[tuple[object, str, int]] = [(value, "", 0)]
    while waiting:
        inner, key, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise IntegrityError(f"{where}: {key[:60]}…: nested more than {MAX_DEPTH} levels deep")
        if isinstance(inner, dict):
            waiting += [(name, "a key", depth + 1) for name in inner]
            waiting += [
                (entry, f"{key}.{name}".lstrip("."), depth + 1) for name, entry in inner.items()
            ]
        elif isinstance(inner, list):
            waiting += [(entry, f"{key}[{i}]", depth + 1) for i, entry in enumerate(inner)]
        elif isinstance(inner, int | float) and not abs(inner) <= MAX_NUMBER:
            raise IntegrityError(f"{where}: {key} is beyond ±2**63")
        elif isinstance(inner, str) and any("\ud800" <= letter <= "\udfff" for letter in inner):
            raise IntegrityError(f"{where}: {key} is {inner[:60]!r}, no text")


def is_plain(name: str) -> bool:
    """Returns whether a name means something in a directory, and nothing outside."""
    return name not in ("", "..") and Path(name).name == name


class Fields:
    """The fields of a JSON object. Every method's IntegrityError names the file and the field.

    Args:
        value: the parsed JSON.
        where: path of the file.
        key: what the object is called in the file, ``""`` for the whole.
    """

    def __init__(self, value: object, where: Path, key: str) -> None:
        self._where, self._prefix = where, f"{key}." if key else ""
        if not isinstance(value, dict):
            raise IntegrityError(f"{where}: {key or 'the manifest'} is missing or not of type dict")
        self._value: Json = value
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """Returns a field as it is, None if it is missing."""
        self._read.add(key)
        return self._value.get(key)

    def unread(self) -> Json:
        """Returns the fields that nothing has read."""
        return {key: value for key, value in self._value.items() if key not in self._read}

    def whole(self, key: str, low: int, high: int) -> int:
        """Returns a whole number in a range."""
        value = self.required(key, int)
        if not low <= value <= high:
            raise IntegrityError(
                f"{self._where}: {self._prefix}{key} is {value}, not from {low} to {high}"
            )
        return value

    def optional_whole(self, key: str, low: int, high: int) -> int | None:
        """Returns a whole number in a range, None if it is missing or null."""
        return None if self.get(key) is None else self.whole(key, low, high)

    def required(self, key: str, kind: type[T]) -> T:
        """Returns a field of a type."""
        return self._check(key, self.get(key), kind)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Returns a field of a type, None if it is missing or null."""
        return None if self.get(key) is None else self.required(key, kind)

    def optional_choice(self, key: str, choices: Collection[T]) -> T | None:
        """Returns a field that is one of some values, None if it is missing or null."""
        value = self.get(key)
        for choice in choices:
            if value == choice:
                return choice
        if value is None:
            return None
        raise IntegrityError(
            f"{self._where}: {self._prefix}{key} is {value!r}; known are {', '.join(map(str, choices))}"
        )

    def mapping(self, key: str, kind: type[T]) -> dict[str, T]:
        """Returns an object whose values are all of a type."""
        values = self.required(key, dict)
        return {name: self._check(f"{key}.{name}", value, kind) for name, value in values.items()}

    def number(self, key: str) -> float:
        """Returns a finite number."""
        return self._check_number(key, self.get(key))

    def channels(self, key: str) -> tuple[float, ...]:
        """Returns three finite numbers: for red, green and blue."""
        values = self.required(key, list)
        if len(values) != 3:
            raise self._wrong(key, "list of 3 numbers")
        return tuple(self._check_number(f"{key}[{i}]", value) for i, value in enumerate(values))

    def texts(self, key: str) -> tuple[str, ...]:
        """Returns a list of strings, empty if the field is missing."""
        values = self.optional(key, list) or []
        return tuple(self._check(f"{key}[{i}]", value, str) for i, value in enumerate(values))

    def shape(self, key: str) -> tuple[int | str, ...]:
        """Returns a list of sizes, with names for the sizes that are free."""
        values = self.required(key, list)
        if any(type(value) not in (int, str) for value in values):
            raise self._wrong(key, "list of int or str")
        return tuple(values)

    def objects(self, key: str) -> list["Fields"]:
        """Returns a list of objects."""
        values, name = self.required(key, list), self._prefix + key
        return [Fields(value, self._where, f"{name}[{i}]") for i, value in enumerate(values)]

    def nested(self, key: str) -> "Fields":
        """Returns the fields of an object inside this one."""
        return Fields(self.get(key), self._where, self._prefix + key)

    def plain_name(self, key: str, name: str) -> str:
        """Returns the name, unless it leads out of the bundle's directory."""
        if not is_plain(name):
            raise IntegrityError(f"{self._where}: {self._prefix}{key} {name!r} leaves the bundle")
        return name

    def _check(self, key: str, value: object, kind: type[T]) -> T:
        if type(value) is not kind:  # not isinstance: True is no int here
            raise self._wrong(key, kind.__name__)
        return value

    def _check_number(self, key: str, value: object) -> float:
        if type(value) is int or type(value) is float:
            with contextlib.suppress(OverflowError):  # an int beyond all floats
                if math.isfinite(value):
                    return float(value)
        raise self._wrong(key, "finite number")

    def _wrong(self, key: str, kind: str) -> IntegrityError:
        return IntegrityError(f"{self._where}: {self._prefix}{key} is missing or not of type {kind}")
