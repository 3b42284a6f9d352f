"""Reads rows to train on: JSONL files, checked line by line, and data sets from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastlora.accounting.transformers_config import in_short

MESSAGES: Final = "messages"
TEXT: Final = "text"
# The fields of each form of row, by the form's name.
FORMS: Final = {MESSAGES: (MESSAGES,), "prompt and completion": ("prompt", "completion"), TEXT: (TEXT,)}
_ANSWERS: Final = "assistant"
_ROLES: Final = ("system", "user", _ANSWERS)


class RowsError(ValueError):
    """The data cannot be read, or a row is not as it must be; the message names its line."""


@dataclass(frozen=True)
class Rows:
    """Rows that were read.

    Attributes:
        form: A key of FORMS, the same for all rows.
        rows: The fields of that form, of each row.
        unused: Names of other fields that rows had.
        digest: A hash of the rows.
    """

    form: str
    rows: tuple[dict[str, Any], ...]
    unused: tuple[str, ...]
    digest: str


def read_rows(argument: str, source: str) -> Rows:
    """The rows of a JSONL file, or of the split "train" of a data set on the hub.

    Args:
        argument: Which option it is, for messages.
        source: The file's path, or the data set's name.

    Raises:
        RowsError: If there is no such file or data set, there are no rows, or a row is unsound.
    """
    path = Path(source)
    if path.is_file():
        return _checked(source, "line", _lines(path))
    if path.suffix in (".jsonl", ".json") or path.exists() or source.count("/") > 1:
        raise RowsError(f"{argument} must be a JSONL file that exists; there is no file {source!r}")
    return _checked(source, "row", _from_hub(argument, source))


def split_rows(rows: Rows, share: float, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows to train on, and a share of them to evaluate on: at least one of two, unless it is 0.

    Which ones depends on the rows' number and the seed alone.
    """
    import torch

    held = min(max(1, round(share * len(rows.rows))), len(rows.rows) - 1) if share else 0
    order = torch.randperm(len(rows.rows), generator=torch.Generator().manual_seed(seed)).tolist()
    aside = set(order[:held])
    return (
        [row for index, row in enumerate(rows.rows) if index not in aside],
        [row for index, row in enumerate(rows.rows) if index in aside],
    )


def _lines(path: Path) -> Iterable[tuple[int, Any]]:
    """(line number, its JSON) of each line that is not blank."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise RowsError(f"{path}, line {number}: must be JSON; {error}") from error


def _from_hub(argument: str, name: str) -> Iterable[tuple[int, Any]]:
    import datasets

    try:
        found = datasets.load_dataset(name, split="train")
    # Without a connection, or for a name that is none, it raises errors of many types.
    except Exception as error:
        raise RowsError(
            f"{argument} must be a JSONL file or a data set on the hub; {name!r} is no file, and: "
            f"{in_short(error)}"
        ) from error
    return enumerate(iter(found), 1)


def _checked(source: str, what: str, numbered: Iterable[tuple[int, Any]]) -> Rows:
    form, rows, unused = "", [], set()
    for number, row in numbered:
        place = f"{source}, {what} {number}"
        found = _form_of(place, row)
        form = form or found
        if found != form:
            raise RowsError(f"{place}: must hold {form}, as the rows before it; it holds {found}")
        for field in FORMS[form]:
            _check_field(place, field, row[field])
        rows.append({field: row[field] for field in FORMS[form]})
        unused |= row.keys() - set(FORMS[form])
    if not rows:
        raise RowsError(f"{source} must hold at least one row; it is empty")
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return Rows(form, tuple(rows), tuple(sorted(unused)), digest)


def _form_of(place: str, row: Any) -> str:
    if not isinstance(row, dict):
        raise RowsError(f"{place}: must be an object such as {{'text': ...}}; got {row!r:.100}")
    found = [form for form, fields in FORMS.items() if all(field in row for field in fields)]
    if len(found) != 1:
        raise RowsError(
            f"{place}: must hold one of messages, prompt and completion, or text; "
            f"its fields are {', '.join(map(str, row)) or 'none'}"
        )
    return found[0]


def _check_field(place: str, field: str, value: Any) -> None:
    if field != MESSAGES:
        if not isinstance(value, str) or not value.strip():
            raise RowsError(f"{place}: {field} must be text that is not empty; got {value!r:.100}")
        return
    if not isinstance(value, list) or not value:
        raise RowsError(f"{place}: messages must be a list that is not empty; got {value!r:.100}")
    for index, message in enumerate(value):
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        )
        if role not in _ROLES:
            raise RowsError(
                f"{place}: messages[{index}].role must be one of {', '.join(_ROLES)}; got {role!r:.100}"
            )
        if not isinstance(content, str) or not content.strip():
            raise RowsError(
                f"{place}: messages[{index}].content must be text that is not empty; got {content!r:.100}"
            )
        if message.keys() - {"role", "content"}:
            extra = ", ".join(sorted(message.keys() - {"role", "content"}))
            raise RowsError(
                f"{place}: messages[{index}] must hold role and content alone; it has {extra} too"
            )
    if not any(message["role"] == _ANSWERS for message in value):
        raise RowsError(f"{place}: messages must hold an answer, of the role {_ANSWERS}; there is none")
