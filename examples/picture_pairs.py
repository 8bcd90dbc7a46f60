"""Data for the cold start of a model that draws and understands, for the tasks redraw and draw-and-read.

    python examples/picture_pairs.py redraw pairs.jsonl 4
    coterie sft --task pairs.jsonl 'model={init: {vocabulary: "01abcdefgh<>", layers: 1, width: 32}}' \
        task.verifier=exact task.held_out=0 warm_start={steps: 200, stop_at: 0.5, check_every: 10, lr: 5e-3} -o cold
    coterie train --task redraw --model cold --method uae policies='{describe: {}, draw: {}}' steps=150

The number is that of cells in a picture, of redraw an even one. For draw-and-read the vocabulary is "rg0123?> ", the
method unirl, and there are no policies: one plays both sides.
"""

from __future__ import annotations

import itertools
import json
import sys

WORDS = "abcd"
"""What two cells of a picture are called."""


def redraw(cells: int) -> list[dict[str, str]]:
    """Each picture described, and drawn from its description."""
    rows = []
    for picture in map("".join, itertools.product("01", repeat=cells)):
        said = "".join(WORDS[int(picture[i : i + 2], 2)] for i in range(0, cells, 2))
        rows += [{"prompt": f"{picture}>", "answer": said}, {"prompt": f"<{said}>", "answer": picture}]
    return rows


def draw_and_read(cells: int) -> list[dict[str, str]]:
    """A picture for each prompt, and its answers."""
    rows = []
    for picture in map("".join, itertools.product("rg", repeat=cells)):
        counts = [picture.count(colour) for colour in "rg"]
        rows.append({"prompt": f"{counts[0]}{counts[1]}>", "answer": picture})
        rows += [{"prompt": f"?{picture} {c}>", "answer": str(n)} for c, n in zip("rg", counts, strict=True)]
    return rows


def main(game: str, path: str, cells: str = "4") -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in {"redraw": redraw, "draw-and-read": draw_and_read}[game](int(cells)):
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
