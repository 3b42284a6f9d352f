"""What a file of choices holds, and the check of each value when one is read.

`fastlora tune` writes one for a kind of GPU: which code was the fastest for a layer's pass there. It may come
from a stranger; so each value is checked, as those of tile tables are.
"""

import math
from typing import Any, Final, NamedTuple

from fastlora_kernels.configs import PACKED_ROWS
from fastlora_kernels.table_content import DTYPES, KINDS, ContentError, Tile, fields, number, tile

SCHEMA: Final = 1
DIRECTIONS: Final = ("forward", "backward")
KERNELS: Final = "kernels"
VENDOR: Final = "vendor"
PERSISTENT: Final = "persistent"
PACKED: Final = "packed"
CODES: Final = (KERNELS, VENDOR, PERSISTENT, PACKED)

# The formats of W, the packed ones by fastlora's names. An entry without one is of a plain W.
PLAIN: Final = "plain"
BASES: Final = (PLAIN, "bnb-4bit", "bnb-int8")
# The kernel that unpacks W inside the product takes so many rows.
MOST_PACKED_ROWS: Final = PACKED_ROWS

_SIZES: Final = range(1, 2**31)
_LONGEST_TEXT: Final = 200
_MOST_ENTRIES: Final = 20_000


class Key(NamedTuple):
    """A pass of a layer.

    Attributes:
        direction: "forward" or "backward".
        kind: "half" for 16 bits, else how fp32 is multiplied: "tf32" or "ieee".
        dtype: Of x and W, such as "bfloat16".
        adapter_dtype: Of A and B.
        K: Columns of x.
        N: Columns of y.
        r: The rank.
        rows: M, as `bucket` rounds it.
        dropout: Whether there is dropout.
        base: The format that the layer keeps W in, one of BASES.
    """

    direction: str
    kind: str
    dtype: str
    adapter_dtype: str
    K: int
    N: int
    r: int
    rows: int
    dropout: bool
    base: str = PLAIN


class Choice(NamedTuple):
    """The code that was taken, and by what measurement.

    Attributes:
        code: One of CODES.
        tile: Of the kernels; None for any other code.
        us: Its median time in microseconds.
        gain: The default's time over its own, the median of paired rounds.
        runner_up: The fastest of the others, in words.
    """

    code: str
    tile: Tile | None
    us: float
    gain: float
    runner_up: str


class Choices(NamedTuple):
    """A file.

    Attributes:
        metadata: Where and by what it was measured: "gpu", "kernels" (a hash of their sources), "triton",
            "torch", "when", and what else is known of the device.
        entries: {Key: Choice}.
    """

    metadata: dict[str, str]
    entries: dict[Key, Choice]


def bucket(M: int) -> int:
    """The power of two that is nearest to M on a logarithmic scale: rows that share a choice."""
    return 1 << max(0, round(math.log2(M))) if M > 0 else 1


def read_choices(content: object) -> Choices:
    """A file's parsed JSON, checked.

    Raises:
        ContentError: If a value is missing, unknown, or out of its range.
    """
    file = fields("the file", content, ("schema", "metadata", "entries"))
    number("schema", file["schema"], (SCHEMA,))
    metadata = file["metadata"]
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
        raise ContentError(f"metadata must map names to texts; got {str(metadata)[:100]}")
    entries = file["entries"]
    if not isinstance(entries, list) or len(entries) > _MOST_ENTRIES:
        raise ContentError(f"entries must be a list of at most {_MOST_ENTRIES:,}")
    return Choices(metadata, dict(_entry(f"entries[{i}]", entry) for i, entry in enumerate(entries)))


def as_content(choices: Choices) -> dict[str, Any]:
    """The file as JSON's types."""
    entries = [
        {
            **key._asdict(),
            **choice._asdict(),
            "tile": None if choice.tile is None else choice.tile._asdict(),
        }
        for key, choice in sorted(choices.entries.items())
    ]
    return {"schema": SCHEMA, "metadata": choices.metadata, "entries": entries}


def _entry(place: str, content: object) -> tuple[Key, Choice]:
    needed = (*Key._fields[:-1], *Choice._fields)
    values = {"base": PLAIN, **fields(place, content, needed, ("base",))}
    for name, known in (
        ("direction", DIRECTIONS),
        ("kind", KINDS),
        ("dtype", DTYPES),
        ("adapter_dtype", DTYPES),
        ("code", CODES),
        ("dropout", (True, False)),
        ("base", BASES),
    ):
        if values[name] not in known or type(values[name]) is not type(known[0]):
            raise ContentError(
                f"{place}.{name} must be one of {', '.join(map(str, known))}; got {values[name]!r:.100}"
            )
    sizes = {name: number(f"{place}.{name}", values[name], _SIZES) for name in ("K", "N", "r", "rows")}
    if sizes["rows"] != bucket(sizes["rows"]):
        raise ContentError(f"{place}.rows must be a power of two; got {sizes['rows']}")
    if values["code"] == PACKED and (
        values["direction"] != "forward" or values["base"] == PLAIN or sizes["rows"] > MOST_PACKED_ROWS
    ):
        raise ContentError(
            f"{place}.code may be {PACKED!r} only forward, over a packed base, "
            f"at up to {MOST_PACKED_ROWS} rows"
        )
    if values["code"] != KERNELS:
        if values["tile"] is not None:
            raise ContentError(f"{place}.tile must be null where the code is {values['code']!r}")
        chosen = None
    else:
        chosen = tile(place, values["direction"], values["tile"])
    if not _is_text(values["runner_up"]):
        raise ContentError(f"{place}.runner_up must be a text; got {values['runner_up']!r:.100}")
    times = [_time(f"{place}.{name}", values[name]) for name in ("us", "gain")]
    key = Key(*(sizes.get(name, values[name]) for name in Key._fields))
    return key, Choice(values["code"], chosen, times[0], times[1], values["runner_up"])


def _time(place: str, value: object) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e12:  # type: ignore[operator]
        raise ContentError(f"{place} must be a number above 0; got {value!r:.100}")
    return float(value)  # type: ignore[arg-type]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT
