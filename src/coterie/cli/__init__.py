"""The command line."""

from __future__ import annotations

import sys
import warnings


def main() -> None:
    """Run the command line: one clear message and an exit code for whatever the user can mend."""
    from coterie.cli.app import app
    from coterie.errors import CoterieError

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    try:
        app()
    except CoterieError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
