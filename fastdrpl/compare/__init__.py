"""`fastdrpl compare`: methods x noises x seeds x data sets as run folders, and the tables of the paper from them."""
