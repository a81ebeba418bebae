"""Signed objects, traces and evidence of jobs that never ran."""
