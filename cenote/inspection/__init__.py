"""Read the live table and its server, and compare them with a configuration."""
