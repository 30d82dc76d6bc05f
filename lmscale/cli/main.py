"""The ``lmscale`` command as a process: what signals and errors become of it.

Nothing above loads more than the interpreter has: `SIGUSR2` asks for a save, and kills a process
that is still importing.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, leave its exit code for a batch script, and return it.

    An ``LmscaleError`` is printed without a traceback; any other exception passes through, as a
    bug. SIGUSR2 is blocked until a run listens, so that the signal ends no command.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2,))
    from lmscale.errors import EXIT_FAILED
    from lmscale.ranks.exits import record_exit

    code = EXIT_FAILED
    try:
        code = _run(arguments)
    finally:
        record_exit(code)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    from lmscale.errors import EXIT_FINISHED, LmscaleError
    from lmscale.files.printing import take_any_text
    from lmscale.ranks.exits import record_fault

    take_any_text()
    try:
        from lmscale.cli.app import app

        app(args=arguments, prog_name="lmscale")
    except LmscaleError as error:
        from lmscale.cli.options import print_problems

        if error.summary:
            record_fault(error.summary, getattr(error, "bad_nodes", {}))
        print_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # how typer ends a command, a usage error (2) included
        return stop.code if isinstance(stop.code, int) else EXIT_FINISHED
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
