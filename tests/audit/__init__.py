"""Known weaknesses of the locked packages: `make audit` asks the public service about them."""
