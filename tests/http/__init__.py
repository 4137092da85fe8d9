"""The REST contract over a running application."""
