"""The numpy twin of the engine: docs/NUMERICS.md in Python, bit for bit."""
