"""Pages and sheets to look at: runs, galleries, previews."""
