"""What every store promises, held against each implementation."""
