"""PlatformIO platform: this computer."""

from platformio.platform.base import PlatformBase


class TinyllmhostPlatform(PlatformBase):
    """Builds programs that run here."""

    def is_embedded(self):
        """Returns False: a program is run, not uploaded."""
        return False
