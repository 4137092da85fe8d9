"""Chaos on real parts: real servers and stores are killed, paused and cut off under load."""
