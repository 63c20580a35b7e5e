"""README's tables of a KnowEdit run, from the reports that `mutandis bench report FOLDER` wrote.

    python bench/knowedit.py FOLDER

Prints edit success, portability and locality by method and data set, `compat / strict` in percent,
and behind them the report's own tables, folded.
"""

import json
import re
import sys
from pathlib import Path

UNEDITED = "*unedited*"
MEASURES = {"edit": "edit success", "portability": "portability", "locality": "locality"}


def score(all_scores, measure):
    """`compat / strict`; a dash where one is not measured, nothing where neither is."""
    found = []
    for protocol in ("compat", "strict"):
        scores = all_scores.get(protocol, {})
        own = scores.get(measure) or scores.get(f"{measure}:kl")
        if own is None:
            found.append("–")
        elif measure in scores:
            found.append(f"{100 * own['mean']:.0f}")
        else:
            found.append(f"{own['mean']:.2f} nats")
    return "" if found == ["–", "–"] else " / ".join(found)


def table(cells, order, titles, measure):
    """Rows are the unedited model and methods, columns data sets."""
    scores = {(f"`{c['method']}`", c["data"]["name"]): score(c["after"], measure) for c in cells}
    scores |= {(UNEDITED, c["data"]["name"]): score(c["before"], measure) for c in cells}
    sets = [name for name in titles if any(scores.get((method, name)) for method in order)]
    yield f"| {MEASURES[measure]} | " + " | ".join(titles[name] for name in sets) + " |"
    yield "|---" * (len(sets) + 1) + "|"
    for method in order:
        row = [scores.get((method, name), "") for name in sets]
        if any(row):
            yield f"| {method} | " + " | ".join(row) + " |"


def folded(markdown, titles):
    """The tables of the data sets as the report has them, one fold each."""
    for title in titles:
        found = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", markdown, re.M | re.S)
        if found:
            yield f"<details><summary>{title}, all columns</summary>\n\n{found[1].strip()}\n\n</details>\n"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    report = json.loads((folder / "report.json").read_text())
    cells = [c for c in report["cells"] if c["done"] == c["parts"]]
    unfinished = [c["id"] for c in report["cells"] if c["done"] < c["parts"]]
    if unfinished:
        print(f"not done, and left out above the folds: {', '.join(unfinished)}", file=sys.stderr)
    order = [UNEDITED, *sorted({f"`{c['method']}`" for c in cells})]
    # By the first of the names that a set goes by.
    titles = {known["names"][0]: known["title"] for known in report["published"]["sets"]}
    for measure in MEASURES:
        print("\n".join(table(cells, order, titles, measure)), end="\n\n")
    print("\n".join(folded((folder / "report.md").read_text(), titles.values())))


main()
