"""Codes on disk: one Parquet file, or a folder of them with an index. No torch."""
