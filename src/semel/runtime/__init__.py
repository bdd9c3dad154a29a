"""Runtime: one worker. It holds tasks, fetches for them, lets agents run, commits epochs, follows the group."""
