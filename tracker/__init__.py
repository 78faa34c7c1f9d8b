"""The session tracker that fleets of AI agents run on."""

__version__ = "0.1.0"
