"""What is known: the tables that agents fill and the web views show."""
