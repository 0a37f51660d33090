"""One HTML page of a run of plot_results.py."""
