"""Run cenote's revisions with `cenote.schema`. The environment is read here, not there."""

import os

from cenote.migrate.environment import run_environment

run_environment(os.environ)
