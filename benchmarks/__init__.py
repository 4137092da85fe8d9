"""Named, repeatable measurements; see README.md in this folder."""
