"""A worker that another process started: python -m coterie.scale RECIPE."""

import sys

from coterie.errors import CoterieError
from coterie.hardware import use_threads
from coterie.recipe import resolve
from coterie.scale import follow
from coterie.scale.processes import Processes

try:
    recipe = resolve(file=sys.argv[1])
    use_threads(recipe.settings.threads)
    workers = Processes(recipe.settings.scale)
    follow(recipe, workers)
    workers.close()
except CoterieError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
