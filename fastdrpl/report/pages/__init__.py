"""The report as one HTML file: facts in, text out."""
