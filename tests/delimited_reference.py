"""A slow reading of delimited text, to hold the fast one against.

Fields come from one pattern and numbers from `float()`: nothing is shared with the reader.
"""

import math
import re
import struct

NUMBER = re.compile(
    r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE
)


def reference(raw, layout):
    """Return {column: values} of a file, or None where it must not be accepted."""
    text = text_of(raw, layout)
    if text is None:
        return None
    while layout.comment and text.startswith(layout.comment):
        text = text.partition("\n")[2]
    names = layout.names
    if layout.header:
        top, _, text = text.partition("\n")
        head = records_of(top + "\n", layout.delimiter)
        if not head or len(head) != 1:
            return None
        names = tuple(name.strip(' \t"') for name in head[0])
    records = records_of(text, layout.delimiter) or []
    while records and not records[-1]:
        records.pop()
    wanted = layout.numeric + layout.text
    if not records or any(len(record) != len(names) for record in records):
        return None
    if any(names.count(name) != 1 for name in wanted):
        return None
    columns = {}
    for name in wanted:
        fields = [record[names.index(name)] for record in records]
        values = [None if field in layout.nulls else field for field in fields]
        columns[name] = [number(v) for v in values] if name in layout.numeric else values
    return None if any("bad" in columns[name] for name in layout.numeric) else columns


def text_of(raw, layout):
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    if "\0" in text or re.search(r"\r(?!\n)", text) or raw[:2] == b"\x1f\x8b":
        return None
    if text.endswith("\n"):
        return text
    return None if layout.final_newline == "require" else text + "\n"


def records_of(text, delimiter):
    """Return the fields of each record, [] for a blank line; None where quotes are broken."""
    kinds = " \t".replace(delimiter or "-", "")
    blanks = f"[{kinds}]*+"
    stop = " \\t" if delimiter is None else re.escape(delimiter)
    between = "[ \\t]++" if delimiter is None else blanks + stop
    field = re.compile(
        rf'{blanks}(?:"(?P<quoted>(?:[^"]|"")*+)"|(?P<plain>(?!")[^{stop}\n]*?))'
        rf"(?:{blanks}(?P<end>\r?\n)|{between})"
    )
    records, fields, at = [], [], 0
    while at < len(text):
        match = field.match(text, at)
        if not match:
            return None
        at = match.end()
        quoted, plain = match["quoted"], match["plain"]
        fields.append((plain if quoted is None else quoted.replace('""', '"')).strip(" \t"))
        if match["end"]:
            records.append([] if fields == [""] and quoted is None else fields)
            fields = []
    return records if not fields else None


def number(text):
    if not text:
        return math.nan
    if not NUMBER.fullmatch(text) or math.isinf(float(text)):
        return "bad"
    return math.nan if math.isnan(float(text)) else float(text)


def bits(frame):
    """Return {column: values} of a frame, floats as their eight bytes."""
    return bits_of({name: frame[name].to_list() for name in frame.columns})


def bits_of(columns):
    def pack(value):
        return struct.pack("<d", value) if isinstance(value, float) else value

    return {name: [pack(value) for value in values] for name, values in columns.items()}
