"""Other projects' interfaces over a `VectorStore`, each in a module and an extra of its own."""
