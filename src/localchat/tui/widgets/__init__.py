"""The widgets: each one draws what it is given; none talks to an engine."""
