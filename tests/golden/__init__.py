"""What released versions have written, kept as files that every later version has to read."""
