"""Build SQL and DDL for Postgres, and work with its driver, errors and locks."""
