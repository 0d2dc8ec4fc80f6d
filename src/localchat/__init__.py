"""localchat: chat with open-weight models on your own computer, with no service that could be switched off."""

__version__ = "0.1.0"
