"""Parts of the actors by themselves."""
