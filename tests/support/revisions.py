"""`make revisions`: what the files that compute are, and the numbers of three steps of each class."""

from __future__ import annotations

import json

from bitexp.track.code import COMMITTED, hashes


def write_committed() -> None:
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(pair)}" for name, pair in hashes().items())
    COMMITTED.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    write_committed()
