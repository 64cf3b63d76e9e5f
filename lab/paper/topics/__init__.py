"""The paper's figures and tables, a file a topic."""
