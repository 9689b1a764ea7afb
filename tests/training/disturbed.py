"""`eosin` that is disturbed at a named step: python disturbed.py SIGNAL CALL RANK WORDS…

The process of RANK sends SIGNAL, a number, to itself as it begins its optimiser step of number CALL, counted from 1
over all runs of the command. A negative SIGNAL goes to the process that started it: the launcher.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from eosin.cli.main import main
from eosin.training import method
from eosin.training.pretrain import pretrain_step


def disturb(number: int, call: int) -> None:
    calls: list[int] = []

    def step(*arguments: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid() if number > 0 else os.getppid(), abs(number))
        return pretrain_step(*arguments, **words)

    method.pretrain_step = step  # type: ignore[assignment]


if __name__ == "__main__":
    number, call, rank = (int(word) for word in sys.argv[1:4])
    sys.argv[1:4] = []
    if int(os.environ.get("RANK", "0")) == rank:
        disturb(number, call)
    main()
