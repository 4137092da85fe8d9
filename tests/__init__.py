"""Tests, by what they need: unit and property tests need nothing, the others real parts."""
