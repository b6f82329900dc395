"""What a run leaves for people: histograms, the table of labels, the summary."""
