"""Whole frames of a growing extended XYZ file: where they end, and which structures they label."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from egnn_md.errors import InputError


@dataclass
class FrameScan:
    """What :func:`scan_frames` found: ``end`` is the byte after the last complete frame."""

    end: int = 0
    frames: int = 0
    comments: list[dict[str, str]] = field(default_factory=list)


def parse_comment(line: str) -> dict[str, str]:
    """``key=value`` words of a comment line as plain text.

    ASE's own parser would turn an id of digits into a number (``12e45…`` even into infinity), so ids are
    read here.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # an unbalanced quote
        words = line.split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def scan_frames(path: str | Path) -> FrameScan:
    """Walk through an (extended) XYZ file frame by frame without parsing numbers.

    A frame is complete when all its lines are there and the last one ends in a newline, or when the file
    ends right after a last line that has as many columns as the line before it (an editor or another
    program may leave the final newline out). Blank lines between or after frames are skipped.

    Raises:
        InputError: a place where a frame should start holds something else; the message names the byte.
    """
    path = Path(path)
    scan = FrameScan()
    with path.open("rb") as file:
        while True:
            start = file.tell()
            header = file.readline()
            if not header:
                break
            if not header.strip():
                if header.endswith(b"\n"):
                    scan.end = file.tell()
                continue
            if not header.endswith(b"\n"):
                break  # the count itself may be cut short
            try:
                count = int(header)
            except ValueError:
                count = -1
            if count < 0:
                raise InputError(
                    f"{path}: byte {start} should start a frame with its number of atoms, but holds "
                    f"{header[:40]!r}; it is not an XYZ file or was damaged there"
                )
            comment = file.readline()
            lines = [file.readline() for _ in range(count)]
            if not _complete(comment, lines):
                break
            scan.end = file.tell()
            scan.frames += 1
            scan.comments.append(parse_comment(comment.decode(errors="replace")))
    return scan


def _complete(comment: bytes, lines: list[bytes]) -> bool:
    if not lines:
        return comment.endswith(b"\n")
    last = lines[-1]
    if last.endswith(b"\n"):
        return True
    # without a newline a number may be cut in its middle: a whole line is as long as its neighbour
    return len(lines) > 1 and bool(last) and len(last) == len(lines[-2].rstrip(b"\r\n"))
