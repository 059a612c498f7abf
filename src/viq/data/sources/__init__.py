"""Any input as rows: files, lists, JSON, tar, Parquet, data sets of Hugging Face."""

from viq.data.sources.base import ImageRef, Row, Source, SourceError
from viq.data.sources.open import concatenate, open_source

__all__ = ["ImageRef", "Row", "Source", "SourceError", "concatenate", "open_source"]
