"""Agent: the user's code runs, an event at a time within a partition."""
