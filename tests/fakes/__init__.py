"""Stand-ins for what the tests cannot have, named for what they are."""
