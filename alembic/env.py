"""Runs cenote's revisions. All it does is in `cenote.schema`; only the environment is read here."""

import os

from cenote.schema import run_environment

run_environment(os.environ)
