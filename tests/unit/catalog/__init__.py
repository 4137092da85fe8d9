"""The catalog: definitions and keys, over the store in memory."""
