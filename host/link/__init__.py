"""The line to a board: frames, transports and the client that speaks docs/PROTOCOL.md."""
