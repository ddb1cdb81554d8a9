"""Pictures and truth of people who do not exist."""
