"""The compiled part of `compiled.py`; importing it imports numba.

Everything that is compiled is in this one file, because numba looks at the file of the outermost
function alone to tell whether what it keeps on disk is out of date.

Functions that hand arrays to each other would count references at every call, which costs more
than reading a field. So they are handed addresses, which are plain integers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from pipeline.trials import Bool, Float64, Int64

F = TypeVar("F", bound=Callable[..., Any])


DONE, UNSURE, LONG = 0, 1, 2
"""Parsed; a field is no plain number; a field has digits that only `float()` can round."""
LOWEST, HIGHEST = -342, 308
"""Powers of ten beyond which 19 digits are 0 or infinite."""

_numba: Any = import_module("numba")  # has no types, as its
_ir: Any = import_module("llvmlite.ir")
_instruction: Callable[[Callable[..., Any]], Callable[..., Any]] = _numba.extending.intrinsic
_OPTIONS = {"nogil": True, "error_model": "numpy"}  # no check of divisors: none here is 0

_NEWLINE, _RETURN, _QUOTE, _PLUS, _MINUS, _DOT, _ZERO = 10, 13, 34, 43, 45, 46, 48
_TO_LOWER, _A, _E, _N = 32, 97, 101, 110
_MOST_DIGITS = 19
_EXPONENT_LIMIT = 1 << 40
_EXACT_LIMIT = np.uint64(1 << 53)
_TENS = np.array([10.0**i for i in range(23)])
_0, _1, _3, _10 = (np.uint64(i) for i in (0, 1, 3, 10))
_HIGH_BITS, _LOW_BITS, _NEWLINES, _RETURNS, _QUOTES = (
    np.uint64(byte * 0x0101010101010101) for byte in (0x80, 0x7F, _NEWLINE, _RETURN, _QUOTE)
)
_WIDE = 8 if sys.byteorder == "little" else 1 << 62
_POWERS_OF_TEN = np.array([10**i for i in range(9)], np.uint64)
_ZEROS, _ABOVE_NINE = (np.uint64(byte * 0x0101010101010101) for byte in (_ZERO, 0x76))
# 100 and 10**6, 1 and 10**4: what pairs of digits count.
_PAIRS, _LOW_FACTORS, _HIGH_FACTORS = (
    np.uint64(word) for word in (0x000000FF000000FF, 0x000F424000000064, 0x0000271000000001)
)
_SPARE_BITS = np.uint64(0x1FF)
_TOP, _EXPONENT_AT, _INFINITE, _BIAS = np.uint64(63), np.uint64(52), np.uint64(2047 << 52), 1023


def compile_kernel() -> tuple[Callable[..., int], Callable[..., None]]:
    """Return `_parse_files` and `_count_lines`, compiled; from disk if they were before."""
    kinds = _numba.types
    numbers, flags = kinds.int64[::1], kinds.boolean[::1]
    parsed = (*[kinds.int64] * 4, *[numbers] * 4, flags, numbers, kinds.float64[:, ::1])
    return _compile(_parse_files, parsed), _compile(_count_lines, (numbers,) * 3)


def _compile(function: F, arguments: tuple[Any, ...]) -> F:
    try:
        compiled: F = _numba.njit(arguments, cache=True, **_OPTIONS)(function)
    except (RuntimeError, OSError):  # no folder for the cache, or no room in it
        compiled = _numba.njit(arguments, **_OPTIONS)(function)
    return compiled


def _inlined(function: F) -> F:
    compiled: F = _numba.njit(forceinline=True, **_OPTIONS)(function)
    return compiled


def _loading(kind: str) -> Callable[[int], Any]:
    """Return compiled code that loads a number from an address."""

    def load(_: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pointer = context.get_value_type(signature.return_type).as_pointer()
            return builder.load(builder.inttoptr(values[0], pointer), align=1)

        return getattr(_numba.types, kind)(address), generate

    return _instruction(load)


_byte, _word = _loading("uint8"), _loading("uint64")


@_instruction
def _leading_zeros(_: Any, word: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.ctlz(values[0], _ir.IntType(1)(0))

    return _numba.types.int64(word), generate


@_instruction
def _high_product(_: Any, a: Any, b: Any) -> Any:
    """The upper 64 bits of a product."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        wide = _ir.IntType(128)
        product = builder.mul(*(builder.zext(value, wide) for value in values))
        return builder.trunc(builder.lshr(product, wide(64)), values[0].type)

    return _numba.types.uint64(a, b), generate


@_instruction
def _trailing_zeros(_: Any, word: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], _ir.IntType(1)(0))

    return _numba.types.int64(word), generate


@_instruction
def _count_bits(_: Any, word: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.ctpop(values[0])

    return _numba.types.uint64(word), generate


def _count_lines(begins: Int64, ends: Int64, n_lines: Int64) -> None:
    """Count the lines of each text; 0 where the last one has no end or a byte is out of place.

    Out of place are quotes, carriage returns, NUL, and whatever is not ASCII.
    """
    for i in range(len(begins)):
        at, end, found, odd = begins[i], ends[i], _0, _0
        while at + 8 <= end:
            word = _word(at)
            found += _count_bits(_matches(word, _NEWLINES))
            odd |= word & _HIGH_BITS | _matches(word, _QUOTES)
            odd |= _matches(word, _RETURNS) | _matches(word, _0)
            at += 8
        while at < end:
            byte = _byte(at)
            found += _1 if byte == _NEWLINE else _0
            if byte > 127 or byte in (0, _QUOTE, _RETURN):
                odd = _1
            at += 1
        whole = end > begins[i] and _byte(end - 1) == _NEWLINE
        n_lines[i] = np.int64(found) if whole and odd == _0 else 0


@_inlined
def _matches(word: np.uint64, wanted: np.uint64) -> np.uint64:
    """Return the high bit of each byte that is as in `wanted`."""
    differs = word ^ wanted
    return ~((differs & _LOW_BITS) + _LOW_BITS | differs | _LOW_BITS)


def _parse_files(
    mark: int, number_nulls: int, other_nulls: int, powers: int, columns: Int64,
    begins: Int64, ends: Int64, edges: Int64, failed: Bool, state: Int64, out: Float64,
) -> int:  # fmt: skip
    """Fill rows edges[i] to edges[i + 1] of `out` from begins[i] to ends[i], for each text i.

    Texts with fields that are no plain numbers, or too few or many of them, are `failed`. At a
    field that is too long it stops, and `state` becomes: its start, its end, row, field, text;
    called again, it goes on where `state` says: address, unused, row, field, text.
    """
    at, row, field, last = state[0], state[2], state[3], len(columns) - 1
    for i in range(state[4], len(begins)):
        while row < edges[i + 1] and not failed[i]:
            while field <= last:
                column, code, end = columns[field], DONE, at
                if column < 0:
                    while not _is_end(end, mark):
                        end += 1
                else:
                    value, end, code = _parse_field(
                        at, ends[i], mark, number_nulls, other_nulls, powers
                    )
                    out[row, column] = value
                if code == UNSURE or _byte(end) != (mark if field < last else _NEWLINE):
                    failed[i] = True
                    break
                if code == LONG:
                    state[0], state[1], state[2], state[3], state[4] = at, end, row, field, i
                    return LONG
                at, field = end + 1, field + 1
            row, field = row + 1, 0
        if i + 1 < len(begins):
            at, row, field = begins[i + 1], edges[i + 1], 0
    return DONE


@_inlined
def _parse_field(
    at: int, limit: int, mark: int, number_nulls: int, other_nulls: int, powers: int
) -> tuple[float, int, int]:
    """Return the value, where the field ends, and a code."""
    if _is_end(at, mark):
        return np.nan, at, DONE
    if _byte(number_nulls) != _NEWLINE:
        end = _end_of_null(at, mark, number_nulls)
        if end > 0:
            return np.nan, end, DONE
    if _byte(at) | _TO_LOWER == _N:
        end = _end_of_nan(at)
        if end > 0 and _is_end(end, mark):
            return np.nan, end, DONE
    value, end, code = _parse_number(at, limit, powers)
    if code == UNSURE or not _is_end(end, mark):
        end = _end_of_nan(at)
        if end == 0 or not _is_end(end, mark):
            end = _end_of_null(at, mark, other_nulls)
        return np.nan, max(end, at), DONE if end > 0 else UNSURE
    return value, end, code


@_inlined
def _is_end(at: int, mark: int) -> bool:
    return bool((_byte(at) == mark) | (_byte(at) == _NEWLINE))


@_inlined
def _end_of_nan(at: int) -> int:
    """Return where NaN, in any case and with any sign, ends; 0 where it is not."""
    if _byte(at) == _PLUS or _byte(at) == _MINUS:
        at += 1
    is_nan = _byte(at) | _TO_LOWER == _N and _byte(at + 1) | _TO_LOWER == _A
    return at + 3 if is_nan and _byte(at + 2) | _TO_LOWER == _N else 0


@_inlined
def _end_of_null(at: int, mark: int, nulls: int) -> int:
    """Return where a field that is among the spellings ends; 0 where it is not."""
    while _byte(nulls) != _NEWLINE:
        end = at
        while _byte(nulls) != _NEWLINE and _byte(end) == _byte(nulls):
            end, nulls = end + 1, nulls + 1
        if _byte(nulls) == _NEWLINE and _is_end(end, mark):
            return end
        while _byte(nulls) != _NEWLINE:
            nulls += 1
        nulls += 1
    return 0


@_inlined
def _parse_number(at: int, limit: int, powers: int) -> tuple[float, int, int]:
    negative = _byte(at) == _MINUS
    start = at + 1 if negative or _byte(at) == _PLUS else at
    digits, at = _read_digits(start, limit, _0)
    n_digits, exponent = at - start, 0
    if _byte(at) == _DOT:
        digits, end = _read_digits(at + 1, limit, digits)
        exponent = at + 1 - end
        n_digits, at = n_digits - exponent, end
    n_dropped, end_of_digits = 0, at
    if n_digits == 0:
        return 0.0, at, UNSURE
    if _byte(at) | _TO_LOWER == _E:
        written, at = _read_exponent(at + 1)
        exponent += written
    is_exact = True
    if n_digits > _MOST_DIGITS:
        digits, n_dropped, is_exact = _first_digits(start, end_of_digits)
        exponent += n_dropped
    value = _nearest(digits, exponent, powers)
    if not is_exact and value != _nearest(digits + _1, exponent, powers):
        return value, at, LONG
    return (-value if negative else value), at, UNSURE if value == np.inf else DONE


@_inlined
def _read_digits(at: int, limit: int, digits: np.uint64) -> tuple[np.uint64, int]:
    """Return the digits appended to those before them (modulo 2**64), and where they end."""
    while at + _WIDE <= limit:  # eight at once
        word = _word(at) ^ _ZEROS
        others = (word & _LOW_BITS) + _ABOVE_NINE | word
        n = _trailing_zeros(others & _HIGH_BITS) >> 3
        if n < 8:
            word = word << np.uint64(8 * (7 - n)) << np.uint64(8)
            return digits * _POWERS_OF_TEN[n] + _join_digits(word), at + n
        digits = digits * _POWERS_OF_TEN[8] + _join_digits(word)
        at += 8
    digit = _byte(at) - _ZERO
    while 0 <= digit <= 9:
        digits = digits * _10 + np.uint64(digit)
        at += 1
        digit = _byte(at) - _ZERO
    return digits, at


@_inlined
def _join_digits(word: np.uint64) -> np.uint64:
    """Return the number whose digits are the bytes of a word, the lowest one first."""
    word = word * _10 + (word >> np.uint64(8))
    low, high = word & _PAIRS, word >> np.uint64(16) & _PAIRS
    return (low * _LOW_FACTORS + high * _HIGH_FACTORS) >> np.uint64(32)


@_inlined
def _read_exponent(at: int) -> tuple[int, int]:
    """Return the exponent and where it ends: at the E, which ends no field, if it has no digits."""
    negative = _byte(at) == _MINUS
    start = at + 1 if negative or _byte(at) == _PLUS else at
    exponent, end = 0, start
    digit = _byte(end) - _ZERO
    while 0 <= digit <= 9:
        if exponent < _EXPONENT_LIMIT:
            exponent = exponent * 10 + digit
        end += 1
        digit = _byte(end) - _ZERO
    return (-exponent if negative else exponent), end if end > start else at - 1


@_inlined
def _first_digits(start: int, end: int) -> tuple[np.uint64, int, bool]:
    """Return the first 19 digits but leading zeros, how many follow, and if those are zeros."""
    digits, n_taken, n_dropped, is_exact = _0, 0, 0, True
    for at in range(start, end):
        if _byte(at) == _DOT:
            continue
        digit = _byte(at) - _ZERO
        if n_taken == _MOST_DIGITS:
            n_dropped += 1
            is_exact = is_exact and digit == 0
        elif n_taken or digit:
            digits, n_taken = digits * _10 + np.uint64(digit), n_taken + 1
    return digits, n_dropped, is_exact


@_inlined
def _nearest(digits: np.uint64, exponent: int, powers: int) -> float:
    """Return the float64 nearest to digits * 10**exponent."""
    if digits <= _EXACT_LIMIT and -22 <= exponent <= 22:
        exact = float(np.int64(digits))
        return float(exact / _TENS[-exponent] if exponent < 0 else exact * _TENS[exponent])
    if digits == _0 or exponent < LOWEST:
        return 0.0
    if exponent > HIGHEST:
        return np.inf
    n_zeros = _leading_zeros(digits)
    high, low = _multiply(digits << np.uint64(n_zeros), powers + 16 * (exponent - LOWEST))
    # 10**q = 5**q * 2**q, and 217706 / 2**16 is log2(10) closely enough for all q here.
    carry = 1 if high >> _TOP else 0
    power = ((217706 * exponent) >> 16) + 63 + carry - n_zeros + _BIAS
    return _round(high, low, power, exponent)


@_inlined
def _multiply(word: np.uint64, power: int) -> tuple[np.uint64, np.uint64]:
    """Return the upper 128 bits of the product, exact as far as rounding needs them."""
    high, low = _high_product(word, _word(power)), word * _word(power)
    if high & _SPARE_BITS == _SPARE_BITS:
        carry = _high_product(word, _word(power + 8))
        low += carry
        if low < carry:
            high += _1
    return high, low


@_inlined
def _round(high: np.uint64, low: np.uint64, power: int, exponent: int) -> float:
    """Return the float64 of a product whose first bit counts 2**(power - bias)."""
    shift = (high >> _TOP) + np.uint64(9)
    bits = high >> shift  # one more than a float64 keeps
    if power < -62:
        return 0.0
    if power <= 0:  # subnormal, where no product lies halfway
        bits >>= np.uint64(1 - power)
    elif low <= _1 and -4 <= exponent <= 23 and bits & _3 == _1 and bits << shift == high:
        bits -= _1  # halfway, to even
    bits = (bits + (bits & _1)) >> _1
    if power > 0:  # the hidden bit counts as 1, and as one more where rounding carried into it
        bits += np.uint64(power - 1) << _EXPONENT_AT
    value: float = np.uint64(min(bits, _INFINITE)).view(np.float64)
    return value
