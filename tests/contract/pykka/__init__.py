"""What the kernel relies on in Pykka: its behaviour, by its own tests, and its private names."""
