"""Run cenote's revisions. Settings may come from the environment, which is read only here."""

import os

from cenote.migrate.environment import run_environment

run_environment(os.environ)
