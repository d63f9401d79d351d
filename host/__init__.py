"""Host tool of the ESP32 language-model kit: quantize, package, flash, chat and verify."""

__version__ = "0.1.0"
