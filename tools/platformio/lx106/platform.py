"""PlatformIO platform: a bare Xtensa lx106 core in an emulator."""

from platformio.platform.base import PlatformBase


class Tinyllmlx106Platform(PlatformBase):
    """Builds programs that QEMU runs."""

    def is_embedded(self):
        """Returns False: a program is run in an emulator, not uploaded."""
        return False
