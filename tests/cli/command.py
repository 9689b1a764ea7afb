"""The command line, called as a shell calls it."""

from __future__ import annotations

import sys

from eosin.cli.main import main


def eosin(*words: object) -> int:
    """Exit code of `eosin WORDS`."""
    argv, sys.argv = sys.argv, ["eosin", *map(str, words)]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = argv
    return 0
