"""Commands of `heterosis`, one file each."""
