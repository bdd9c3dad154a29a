"""`semel up`: real events through a real broker and two workers, one of them killed, and an audit at the end."""
