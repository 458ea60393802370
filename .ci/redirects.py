"""Pages that have moved: a small page at each old address leads to the new one.

CONTRIBUTING.md holds the table, under `## Moved pages`, with one row an address:

    | howto.html | guides/train.html |
"""

import html
import posixpath
import re
from pathlib import Path

HEADING = "## Moved pages"
ADDRESS = re.compile(r"(?!/)(?:[\w-]+/)*[\w-]+\.html")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>This page has moved</title>
<meta name="robots" content="noindex">
<link rel="canonical" href="{canonical}">
<noscript><meta http-equiv="refresh" content="0; url={link}"></noscript>
<script>location.replace("{link}" + location.search + location.hash);</script>
</head>
<body>
<p>This page has moved to <a href="{link}">{new}</a>.</p>
</body>
</html>
"""


def read_moves(text):
    """Return the rows of the table, old and new address, and what is wrong with it."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    _, heading, after = text.partition(f"\n{HEADING}\n")
    section = re.split(r"^#", after, maxsplit=1, flags=re.M)[0]
    rows = re.findall(r"^\|(.*)\|[ \t]*$", section, flags=re.M)
    if not heading or len(rows) < 2:
        return [], [
            f"CONTRIBUTING.md: got no table of moved pages, expected {HEADING!r} "
            "with two columns; write it, it may be empty"
        ]
    moves, faults = [], []
    for row in rows[2:]:  # below the names of the columns and their rule
        cells = [cell.strip() for cell in row.split("|")]
        if len(cells) == 2 and all(map(ADDRESS.fullmatch, cells)):
            moves.append(tuple(cells))
        else:
            faults.append(
                f"moved page |{row}|: got another row, expected two addresses such as "
                "guides/train.html; mend it in CONTRIBUTING.md"
            )
    return moves, faults


def move_faults(moves, pages):
    """List moves that lead nowhere, or away from a page or an address that is taken."""
    taken = set()
    for old, new in moves:
        if new not in pages:
            yield (
                f"moved page {old}: got {new}, expected a page of the site; "
                "mend the new address in CONTRIBUTING.md"
            )
        if old in pages:
            yield (
                f"moved page {old}: got a page at this address, expected none; "
                "take the row out of CONTRIBUTING.md, or move the page"
            )
        if old in taken:
            yield (
                f"moved page {old}: got two rows, expected one; "
                "take one out of CONTRIBUTING.md"
            )
        taken.add(old)


def write_redirects(moves, site, address):
    """Write the page of each old address. The part behind a # is kept by a script."""
    for old, new in moves:
        link = posixpath.relpath(new, posixpath.dirname(old) or ".")
        words = {"link": link, "new": new, "canonical": f"{address}/{new}"}
        page = PAGE.format_map({key: html.escape(word) for key, word in words.items()})
        path = Path(site, old)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
