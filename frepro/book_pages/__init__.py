"""Generate the book's pages for Sphinx: results, status, API reference, and the audit of papers and code."""
