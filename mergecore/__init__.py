"""The science of model merging as a library; it needs no server."""
