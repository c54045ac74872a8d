"""The process that looks: one name a line in, one finding a line out. What hangs or crashes here is seen outside."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from study.doctor.finding import Options
from study.doctor.looks import LOOKS


def main() -> None:
    """Serve until the input ends. An error of a look ends the process; its last line tells of it."""
    options = Options(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        finding = LOOKS[line.strip()].take(options)
        answers.write(json.dumps(dataclasses.asdict(finding)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
