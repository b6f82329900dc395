"""From what a user downloaded to pixels on the device."""
