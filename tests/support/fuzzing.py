"""Files that are damaged at random from a seed, and how a command of this process ends."""

import json
import os
import re
import signal
import struct

from launch import cli

# Of the slow tests: more files, and others, are asked for by the environment.
SEED = int(os.environ.get("MELLLM_FUZZ_SEED", "1"))
FILES_OF_A_KIND = int(os.environ.get("MELLLM_FUZZ_FILES", "25"))
COMMAND_LINES = int(os.environ.get("MELLLM_FUZZ_LINES", "500"))
SECONDS = 600  # that a command may take, refused or not
DEEP = 100_000  # levels: more than any parser's stack
RAW = {  # JSON texts that `json.dumps` does not write, by the word that stands for them
    "@deep list": "[" * DEEP + "]" * DEEP,
    "@deep object": '{"a":' * DEEP + "1" + "}" * DEEP,
    "@long number": "9" * 5000,
    "@huge": "1e999",
    "@minus": "-0",
    "@surrogate": r'"\ud800"',
    "@twice": '{"id": 1, "id": 2}',
}
ODD = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e300, 1e-300, 1 << 31, 1 << 63, 1 << 64, 10**400),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "x", "a\nb", "a\0b", "é", "\udcff", "1"),
    *("../..", "/", "NaN", "x" * 3000, "{}", "%s", "file:///etc", "nope://x", "[/bold", "\u2028"),
    *([], {}, [None], [[]], [[[[1]]]], [{}], [1, "a", None], ["a", "a"], [1e999] * 3, {"": 1}),
    *({"a": {"b": []}}, {"id": None}, [0] * 2000, *RAW),
)
BYTES = (b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"\r", b"\t", b'"', b"{", b"}")


def outcome(words, capsys):
    """How `melllm WORDS` ends: its status, standard error, and what was wrong with it."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code or 0
    except BaseException as error:  # whatever it is, it is what is looked for
        capsys.readouterr()
        return None, f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, capsys.readouterr().err


def damaged(draw, content):
    """`content` as bytes with one to three things wrong with it, drawn from `draw`."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice((*[_with_odd_value] * 4, _with_odd_bytes, _with_odd_lines))(
            draw, content
        )
    return content


def damaged_safetensors(draw, content):
    """A safetensors file damaged in its header, its length, or anywhere."""
    (length,) = struct.unpack("<Q", content[:8])
    head, body = content[8 : 8 + length], content[8 + length :]
    how = draw.randrange(6)
    if how == 0:
        return _with_odd_bytes(draw, content)
    if how == 1:
        told = draw.choice((0, 1, length - 1, length + 1, len(content), 1 << 40, (1 << 64) - 1))
        return struct.pack("<Q", told) + head + body
    head = damaged(draw, head)
    return struct.pack("<Q", len(head)) + head + body


def _with_odd_bytes(draw, content):
    """Bytes flipped, put in, taken out or cut off."""
    at = draw.randrange(len(content) + 1)
    stop = min(at + draw.choice((1, 1, 4, 40)), len(content))
    how = draw.randrange(7)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + draw.choice(BYTES) + content[at:]
    if how == 2:
        return content[:at] + content[stop:]
    if how == 3:
        return content[:at] + bytes(draw.randrange(256) for _ in range(stop - at)) + content[stop:]
    if how == 4:
        flipped = bytes(byte ^ 1 << draw.randrange(8) for byte in content[at:stop])
        return content[:at] + flipped + content[stop:]
    if how == 5:
        return content[:at] + b"\0" * (stop - at) + content[stop:]
    whole = draw.choice((b"", b"\0" * 50, b"\xef\xbb\xbf" + content, content * 2, b"[" * DEEP))
    return draw.choice((whole, content.decode("latin-1").encode("utf-16")))


def _with_odd_lines(draw, content):
    """Lines doubled, dropped, exchanged, joined; line ends and blanks of other kinds."""
    lines = content.split(b"\n")
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    how = draw.randrange(6)
    if how == 0:
        lines[at:at] = [lines[at]]
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif how == 3:
        lines[at : at + 2] = [b"".join(lines[at : at + 2])]
    elif how == 4:
        lines[at:at] = [draw.choice((b"", b" ", b"null", b"[]", b"{}", b"\0", b"x\ty", b"#"))]
    else:
        return draw.choice((b"\r\n", b"\r", b"\n\n")).join(lines)
    return b"\n".join(lines)


def _with_odd_value(draw, content):
    """A value of the JSON, or of the line or cell of a table, becomes another; or a field goes."""
    try:
        return _with_odd_leaf(draw, content)
    except (ValueError, RecursionError):
        pass
    lines = content.split(b"\n")
    at = draw.choice([i for i, line in enumerate(lines) if line.strip()] or [0])
    try:
        lines[at] = _with_odd_leaf(draw, lines[at])
    except (ValueError, RecursionError):
        cells = re.split(rb"([\t ,])", lines[at])
        word = _text(draw.choice(ODD)).strip(b'"')
        cells[draw.randrange(len(cells))] = word if b"\n" not in word else b""
        lines[at] = b"".join(cells)
    return b"\n".join(lines)


def _with_odd_leaf(draw, content):
    tree = [json.loads(content)]
    parent, key = tree, 0
    while isinstance(parent[key], dict | list) and parent[key] and draw.random() < 0.85:
        parent = parent[key]
        key = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    how = draw.randrange(8)
    if how == 0 and parent is not tree:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[draw.choice(("", "x", f"{key}s", key.upper()))] = parent.pop(key)
    elif how == 2:
        parent[key] = [parent[key]]
    elif how == 3 and isinstance(parent[key], int | float):
        parent[key] = draw.choice((str(parent[key]), -parent[key], parent[key] + 1, 0))
    else:
        parent[key] = draw.choice(ODD)
    return _text(tree[0])


def _text(value):
    """The JSON of a value, one of `RAW` or with such in it."""
    text = json.dumps(value)
    for word, raw in RAW.items():
        text = text.replace(json.dumps(word), raw)
    return text.encode()
