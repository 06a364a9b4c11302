"""Images that a network makes up itself."""
