"""`python -m local.up`: runs the whole stack in the foreground until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import sys

from local.errors import StackError
from local.supervisor import Supervisor
from settings import Settings, SettingsError


def main() -> None:
    """Run the supervisor; an expected problem ends it with one sentence on stderr and exit code 1."""
    # Logs, databases and tokens are nobody else's to read.
    os.umask(0o077)
    try:
        Supervisor(Settings.from_env(os.environ)).run()
    except (StackError, SettingsError, OSError) as error:
        sys.exit(f"make up: {error}")


if __name__ == "__main__":
    main()
