"""Keep chunks in memory, with numpy, for tests and small collections."""
