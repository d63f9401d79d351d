"""C headers that compile a model's facts into the firmware."""

from host.headers.generate import HEADER, generate_headers, render_header

__all__ = ["HEADER", "generate_headers", "render_header"]
