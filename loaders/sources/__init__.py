"""One module per kind of input: what the user downloaded, opened and checked."""
