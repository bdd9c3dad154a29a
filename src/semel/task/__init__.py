"""A task's life: its topics, its restore, where it starts, when it runs."""
