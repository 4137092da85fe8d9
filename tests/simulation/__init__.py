"""The whole system on a clock, a network and an outside decided by one seed: docs/simulation.md."""
