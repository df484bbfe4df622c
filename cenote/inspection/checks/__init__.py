"""Compare the live table with a configuration, and report each difference with a hint."""
