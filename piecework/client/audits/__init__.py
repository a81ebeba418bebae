"""Audits of canvases that were paid."""
