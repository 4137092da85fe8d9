"""What holds for every input: Hypothesis and seeded simulations."""
