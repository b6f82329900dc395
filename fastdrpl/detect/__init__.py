"""`fastdrpl detect RUN...`: how well each detector of finished runs tells wrong labels from right ones."""
