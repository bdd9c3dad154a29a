"""What shows semel at work on the pipelines of this project."""
