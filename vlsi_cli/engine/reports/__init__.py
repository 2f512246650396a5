"""Self-contained HTML pages and pictures that commands write beside their tables."""
