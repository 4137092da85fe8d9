"""How a person drives it: the `pilotage` command."""
