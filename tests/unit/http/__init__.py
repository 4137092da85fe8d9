"""Parts of the HTTP layer on their own."""
