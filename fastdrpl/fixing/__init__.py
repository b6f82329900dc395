"""From suspects to better labels: decisions about a finished run's samples, and what they are written to."""
