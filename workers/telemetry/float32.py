"""float32 numbers as the double that prints shortest and still is the same float32."""

from __future__ import annotations

import struct

_F32 = struct.Struct("<f")


class _ShortFloats(dict[int, float]):
    """Bits of a float32 to the double of its shortest decimal form (22.6, not 22.600000381469727).

    In a binade whose float32 step is `s`, let 10**-k be the smallest power of ten above `s`. At most one decimal
    with k places rounds to a given float32, so if the nearest one does, it is the shortest; else one place
    more always does. Instruments repeat values, so what was computed is kept, up to a limit.
    """

    limit = 32_768

    def __init__(self) -> None:
        super().__init__()
        self._binades = [_binade(exponent) for exponent in range(512)]

    def __missing__(self, bits: int) -> float:
        binade = self._binades[bits >> 23]
        if binade is None or not bits & 0x7FFFFF:
            value = _shortest_slowly(bits)
        else:
            scale, coarse, half, fine = binade
            exact = (bits & 0x7FFFFF | 0x800000) * scale
            value = round(exact * coarse) / coarse
            if not -half < value - exact < half:
                value = round(exact * fine) / fine
        if len(self) >= self.limit:
            self.clear()
        self[bits] = value
        return value


def _binade(top_bits: int) -> tuple[float, float, float, float] | None:
    """(value of a unit of the mantissa, 10**k, half a step, 10**(k+1)) of sign and exponent bits; None if rare."""
    step = 2.0 ** ((top_bits & 0xFF) - 150)
    if not 1e-12 < step < 1.0:
        return None
    places = next(k for k in range(13, -1, -1) if 10.0**-k > step)
    return (-step if top_bits & 0x100 else step), 10.0**places, step / 2, 10.0 ** (places + 1)


def _shortest_slowly(bits: int) -> float:
    """The same by trying: for zeros, powers of two, very large and very small numbers, infinities, NaN."""
    raw = bits.to_bytes(4, "little")
    value: float = _F32.unpack(raw)[0]
    for digits in range(1, 9):
        candidate = float(f"{value:.{digits}g}")
        try:
            if _F32.pack(candidate) == raw:
                return candidate
        except OverflowError:
            continue  # rounded up beyond the largest float32
    nine = float(f"{value:.9g}")
    return nine if nine == nine else value


SHORT_FLOATS = _ShortFloats()
