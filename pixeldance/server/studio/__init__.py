"""The studio: parts of the page, each a view of the job service."""
