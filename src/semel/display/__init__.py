"""What a person sees: lines, progress, pages."""
