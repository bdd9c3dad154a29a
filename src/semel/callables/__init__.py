"""Functions that users give: what their shape says before they are called."""
