"""Ways out of a finished run: its table, its images with labels, its network, in the forms that other tools read."""
