"""The study: worlds, measures, runs, figures and tables, and the pipeline that makes the paper."""
