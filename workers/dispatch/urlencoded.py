"""The rows of pgq.logutriga: `column=value` pairs joined by &, a bare column is NULL, bytes are %xx, a space is +."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from workers.errors import PermanentFailure

try:
    from skytools._cquoting import db_urldecode as _in_c
except ImportError:  # a platform without the wheel: the twin below gives the same, at a fifth of the speed
    _in_c = None  # type: ignore[assignment]

Row = dict[str, str | None]

_HEX = [digits + more for digits in "0123456789abcdefABCDEF" for more in "0123456789abcdefABCDEF"]
_ASCII = {pair: chr(int(pair, 16)) for pair in _HEX if int(pair, 16) < 0x80}
_BYTES = re.compile(r"(?:%[0-9a-fA-F]{2})+|%")

# Python's codec for each server encoding of PostgreSQL, compared with PostgreSQL's own conversion by the tests.
# The others (EUC_TW, MULE_INTERNAL) have none; SQL_ASCII says nothing about its bytes, so they must be UTF-8.
_CODECS = {
    "LATIN1": "iso8859-1",
    "LATIN2": "iso8859-2",
    "LATIN3": "iso8859-3",
    "LATIN4": "iso8859-4",
    "LATIN5": "iso8859-9",
    "LATIN6": "iso8859-10",
    "LATIN7": "iso8859-13",
    "LATIN8": "iso8859-14",
    "LATIN9": "iso8859-15",
    "LATIN10": "iso8859-16",
    "ISO_8859_5": "iso8859-5",
    "ISO_8859_6": "iso8859-6",
    "ISO_8859_7": "iso8859-7",
    "ISO_8859_8": "iso8859-8",
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "WIN866": "cp866",
    "WIN874": "cp874",
    **{f"WIN{page}": f"cp{page}" for page in range(1250, 1259)},
    "EUC_CN": "gb2312",
    "EUC_JP": "euc_jp",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_KR": "euc_kr",
}
# Characters that PostgreSQL reads from the same bytes where Python's codec reads others.
_CORRECTIONS = {
    "EUC_JP": str.maketrans("〜‖−¢£¬¦", "～∥－￠￡￢￤"),
    "EUC_JIS_2004": str.maketrans("￣―￥⦅⦆", "‾—¥｟｠"),
}


def decode_python(data: str, codec: str = "utf-8") -> Row:
    """What `decode` gives, for data whose bytes are of any codec that leaves ASCII as it is.

    Equal to the C decoder for every text, malformed ones too: empty pairs are skipped, the last of equal columns
    wins, and each further = in a pair begins a value of the column ''. Raises ValueError for a % without two hex
    digits, and its UnicodeError for bytes that are not of the codec.
    """
    if not data.isascii():
        data.encode()  # refuses surrogates, as the C decoder does
    row: Row = {}
    for pair in data.replace("+", " ").split("&"):
        name, equals, value = pair.partition("=")
        if "%" in name:
            name = _unescaped(name, codec)
        if not equals:
            if pair:
                row[name] = None
        elif "=" in value:
            row[name], *surplus = [_unescaped(text, codec) for text in value.split("=")]
            row[""] = surplus[-1]
        elif "%" in value:
            row[name] = _unescaped(value, codec)
        else:
            row[name] = value
    return row


def _unescaped(text: str, codec: str) -> str:
    plain, *escaped = text.split("%")
    try:
        return plain + "".join([_ASCII[part[:2]] + part[2:] for part in escaped])
    except KeyError:  # bytes beyond ASCII, or no hex digits
        return _BYTES.sub(lambda run: _text(run[0], codec), text)


def _text(run: str, codec: str) -> str:
    if run == "%":
        raise ValueError("a % is not followed by two hex digits, as logutriga writes it")
    return bytes.fromhex(run.replace("%", "")).decode(codec)


# One row, from data whose bytes are UTF-8: column names and values, None for NULL. It takes what logutriga cannot have
# written, too, see `check`. Raises ValueError for wrong escapes and (UnicodeDecodeError) for bytes that are not UTF-8.
decode: Callable[[str], Row] = decode_python if _in_c is None else _in_c


def codec(server_encoding: str) -> str:
    """Python's codec for a server encoding; UTF-8 for those that have none."""
    return _CODECS.get(server_encoding, "utf-8")


@cache
def decoder(server_encoding: str) -> Callable[[str], Row]:
    """The decoder for events of a database, by what its `server_encoding` says (UTF8, LATIN1, EUC_JP, ...).

    It raises ValueError like `decode`. A few characters of EUC_JP and EUC_KR that Python's codecs do not know are
    refused that way, never replaced. Raises PermanentFailure for an encoding that cannot be decoded here.
    """
    if server_encoding in ("UTF8", "SQL_ASCII"):
        return decode
    codec = _CODECS.get(server_encoding)
    if codec is None:
        raise PermanentFailure(
            f"events of a source database in {server_encoding} cannot be decoded: use pgq.jsontriga there, whose "
            "events PostgreSQL converts itself, or dump and restore the source in UTF8"
        )
    table = _CORRECTIONS.get(server_encoding)
    if table is None:
        return lambda data: decode_python(data, codec)
    return lambda data: {
        name.translate(table): value if value is None else value.translate(table)
        for name, value in decode_python(data, codec).items()
    }
