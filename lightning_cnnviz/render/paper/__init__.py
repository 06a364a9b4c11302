"""Items of a report for paper: matplotlib figures of a stated width in which text stays text."""
