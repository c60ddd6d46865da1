"""Pages of the book for Sphinx: results, status, reference pages, and the audit of papers and code."""
