"""Files of prompts that several tests of the data read."""

from __future__ import annotations

import json

RECORDS = [
    {
        "prompt": f"play song{n} by {n}",
        "answer": json.dumps({"intent": "PlayMusic", "track": f"song{n}", "artist": str(n)}),
    }
    for n in range(10)
]


def questions(count=20, first=0, **more):
    """Questions with answers whose last line is a number; `more` are fields of every entry."""
    return [
        {"question": f"What is {n} + 1?", "answer": f"It is\n#### {n + 1:,}"} | more
        for n in range(first, first + count)
    ]


def write(path, lines):
    """Write texts and entries as the lines of a file, and return its path."""
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path
