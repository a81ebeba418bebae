"""What a worker keeps of its canvases so that they can be opened, and how it exports a job."""
